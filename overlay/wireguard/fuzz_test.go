package wireguard

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"tulle/overlay/udp"
	"tulle/overlay/udp/udptest"
)

// FuzzReceive: a malicious host between two cells does to their datagrams what it
// likes, and makes up some of its own; it knows both public keys. Nothing panics, no
// frame comes out that was not sent, none twice, none that was touched; and the
// session outlives it.
//
// The input is a list of deeds, each 6 bytes: what, to which recorded handshake or at
// which offset (2), with what (1), and how much (2).
func FuzzReceive(f *testing.F) {
	net := udptest.New()
	var recorded [][]byte // of the handshake
	net.SetHook(func(d *udptest.Datagram) udptest.Fate {
		if d.Payload[0] != typeTransport {
			recorded = append(recorded, append([]byte(nil), d.Payload...))
		}
		return udptest.Deliver
	})
	got := make(chan string, 4096)
	var tunnels [2]*Tunnel
	var publics [2]PublicKey
	for i := range tunnels {
		key, err := GenerateKey()
		if err != nil {
			f.Fatal(err)
		}
		conn, err := net.Listen(netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + i)}), 51820))
		if err != nil {
			f.Fatal(err)
		}
		publics[i] = key.Public()
		tunnels[i], err = New(Options{
			Keys: []PrivateKey{key}, Address: netip.AddrFrom4([4]byte{100, 64, 0, byte(1 + i)}), Conns: []udp.Conn{conn}, MTU: 1440,
			Receive: func(batch []udp.Message) {
				for _, m := range batch {
					if i == 1 {
						got <- m.From.Addr().String() + " " + string(m.Buf[:m.N])
					}
				}
			},
			Log: slog.New(slog.DiscardHandler), clock: func() int64 { return int64(time.Hour) },
		})
		if err != nil {
			f.Fatal(err)
		}
		f.Cleanup(func() { _ = tunnels[i].Close() })
	}
	for i, t := range tunnels {
		other := Peer{Key: publics[1-i], Address: tunnels[1-i].Address(), Endpoint: tunnels[1-i].Local()}
		if err := t.Set("peer", other); err != nil {
			f.Fatal(err)
		}
	}
	a, b := tunnels[0], tunnels[1]
	stranger, err := net.Listen(netip.MustParseAddrPort("192.0.2.9:1"))
	if err != nil {
		f.Fatal(err)
	}
	var macs device.CookieGenerator
	macs.Init(device.NoisePublicKey(publics[1]))

	n := 0
	send := func(t testing.TB) string {
		n++
		body := fmt.Sprintf("frame %d", n)
		if err := a.Send(b.Address(), 0, []byte(body), 0); err != nil {
			t.Fatal(err)
		}
		return "100.64.0.1 " + body
	}
	// settled is what came out before a marker did.
	settled := func(t testing.TB) (bodies []string) {
		marker := send(t)
		for {
			select {
			case body := <-got:
				if body == marker {
					return bodies
				}
				bodies = append(bodies, body)
			case <-time.After(patience):
				t.Fatalf("the session is dead: %q did not arrive", marker)
			}
		}
	}
	if bodies := settled(f); len(bodies) != 0 || len(recorded) < 2 {
		f.Fatalf("%q came out; %d handshake messages", bodies, len(recorded))
	}
	net.SetHook(nil)

	for what := range byte(8) {
		f.Add([]byte{what, 0, 0, 0, 0, 0, what, 0, 20, 1, 0, 40, 0, 0, 0, 0, 0, 0})
		f.Add([]byte{what, 0, 1, 1, 0, 40, 2, 0, 0, 0, 0, 0, what, 0, 4, 255, 0, 148})
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		may := map[string]bool{} // and whether it must
		for deeds := 0; len(in) >= 6 && deeds < 32; deeds++ {
			what, at, with, size := in[0]%8, int(in[1])<<8|int(in[2]), in[3], int(in[4])<<8|int(in[5])
			in = in[6:]
			touched := false
			change := func(d []byte) []byte {
				switch what {
				case 3: // one byte becomes another
					d[at%len(d)] ^= with
					touched = with != 0
				case 4: // shorter
					d = d[:max(1, len(d)-1-size%len(d))]
					touched = true
				case 5: // longer
					for range 1 + size%1400 {
						d = append(d, with)
					}
					touched = true
				}
				return d
			}
			switch what {
			case 6: // something of before, or made up, changed, and with a sum that anybody can make
				d := append([]byte(nil), recorded[at%2]...)
				if size%3 == 0 {
					d = append(d[:4:4], in[:min(len(in), 300)]...)
				}
				d[size%len(d)] ^= with
				if len(d) >= macsLen && size%2 == 0 {
					macs.AddMacs(d)
				}
				if err := stranger.Send(b.Local(), d, 0); err != nil {
					t.Fatal(err)
				}
			case 7: // anything at all
				if d := in[:min(len(in), 300)]; len(d) > 0 {
					if err := stranger.Send(b.Local(), d, 0); err != nil {
						t.Fatal(err)
					}
				}
			default:
				net.SetHook(func(d *udptest.Datagram) udptest.Fate {
					if d.From != a.Local() {
						return udptest.Deliver
					}
					d.Payload = change(d.Payload)
					return []udptest.Fate{udptest.Deliver, udptest.Duplicate, udptest.Hold, udptest.Deliver, udptest.Deliver, udptest.Deliver}[what]
				})
				body := send(t)
				net.SetHook(nil)
				if !touched {
					may[body] = true
				}
			}
		}
		net.Release()
		for _, body := range settled(t) {
			if !may[body] {
				t.Errorf("%q came out, which was not sent, was touched, or came twice", body)
			}
			delete(may, body)
		}
		for body := range may {
			t.Errorf("%q was left as it was and did not come out", strings.TrimPrefix(body, "100.64.0.1 "))
		}
	})
}
