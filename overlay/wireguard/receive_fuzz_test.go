package wireguard

import (
	"testing"

	"golang.zx2c4.com/wireguard/device"

	"tulle/overlay/udp"
)

// What a stranger on the underlay sends, in pieces of any length: no panic, nothing is
// handed on, no session or index comes of it, and what is kept for handshakes is
// bounded.
func FuzzStrangersDatagrams(f *testing.F) {
	a, b := twoEnds(f)
	r := b.receivers[0]
	train := aTrain(a.Tunnel)
	if err := a.SendTrain(b.Address(), 0, train, testFrame); err != nil {
		f.Fatal(err)
	}
	f.Add(a.sink.last[:100], 50)
	f.Add(append([]byte{4, 0, 0, 0}, make([]byte, 60)...), 32)
	for _, n := range []int{initiationLen, responseLen, cookieLen} {
		f.Add(append([]byte{map[int]byte{initiationLen: 1, responseLen: 2, cookieLen: 3}[n], 0, 0, 0}, make([]byte, n-4)...), 0)
	}
	b.Tunnel.receive = func([]udp.Message) { panic("a stranger's datagram is handed on") }
	f.Fuzz(func(t *testing.T, p []byte, segment int) {
		if len(p) > 65535 {
			return
		}
		index := b.Tunnel.peers["other"].current.Load().local
		r.in[0].N = copy(r.in[0].Buf, p)
		r.in[0].Segment, r.in[0].From = segment, a.Local()
		if len(p) >= transportLen {
			endian.PutUint32(r.in[0].Buf[indexAt:], index) // it can be read on the way
		}
		r.take(r.in[:1])
		if n := b.inUse(); n != 1 {
			t.Fatalf("%d indices", n)
		}
		if n := len(b.handshakes); n > queueLen {
			t.Fatalf("%d handshakes wait", n)
		}
	})
}

// Handshakes with right macs, which anybody can make, from a stranger: no panic, and
// no session comes of them.
func FuzzStrangersHandshakes(f *testing.F) {
	a, b := twoEnds(f)
	var macs device.CookieGenerator
	macs.Init(device.NoisePublicKey(b.Public()))
	f.Add(make([]byte, initiationLen), false)
	f.Add(make([]byte, responseLen), true)
	f.Add(make([]byte, cookieLen), false)
	f.Fuzz(func(t *testing.T, p []byte, load bool) {
		m := message{from: a.Local()}
		switch {
		case len(p) >= initiationLen:
			m.n, p = initiationLen, p[:initiationLen]
		case len(p) >= responseLen:
			m.n, p = responseLen, p[:responseLen]
		case len(p) >= cookieLen:
			m.n, p = cookieLen, p[:cookieLen]
		default:
			return
		}
		copy(m.b[:], p)
		endian.PutUint32(m.b[:], map[int]uint32{initiationLen: typeInitiation, responseLen: typeResponse, cookieLen: typeCookie}[m.n])
		if m.n == responseLen {
			endian.PutUint32(m.b[8:], b.Tunnel.peers["other"].current.Load().local)
		}
		if m.n != cookieLen {
			macs.AddMacs(m.b[:m.n])
		}
		b.mu.Lock()
		before := b.Tunnel.peers["other"].current.Load()
		b.mu.Unlock()
		b.message(&m, load)
		if n := b.inUse(); n != 1 || b.Tunnel.peers["other"].current.Load() != before || b.Tunnel.peers["other"].next != nil {
			t.Fatalf("%d indices, or another session", n)
		}
	})
}

// Whatever a peer seals: no panic, and frames are handed on as coming from its own
// address alone.
func FuzzPeersPackets(f *testing.F) {
	a, b := twoEnds(f)
	s := a.Tunnel.peers["other"].current.Load()
	r := b.receivers[0]
	b.Tunnel.receive = func(batch []udp.Message) {
		for _, m := range batch {
			if m.From.Addr() != a.Address() || m.N != len(m.Buf) {
				panic("a frame that is not the peer's")
			}
		}
	}
	f.Add([]byte{})
	f.Add(unhex(f, packetHex))
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) > 60000 {
			return
		}
		d := r.in[0].Buf[:transportLen+len(p)+tagLen]
		copy(d[transportLen:], p)
		s.sealAt(d, len(p), s.counter.Add(1)-1)
		r.in[0].N, r.in[0].Segment, r.in[0].From = len(d), 0, a.Local()
		r.take(r.in[:1])
	})
}
