package packet_test

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
)

var (
	four = [2]netip.AddrPort{netip.MustParseAddrPort("10.255.7.1:4000"), netip.MustParseAddrPort("203.0.113.9:5000")}
	six  = [2]netip.AddrPort{netip.MustParseAddrPort("[fd74:756c:6c65::aff:701]:4000"), netip.MustParseAddrPort("[2001:db8::9]:5000")}
)

// cut makes fragments of size bytes of a whole packet. Those of IPv6 may have extension
// headers on either side of the fragment header.
func cut(p []byte, size int, id uint32, before, behind bool) (all [][]byte) {
	if p[0]>>4 == 4 {
		body := p[20:]
		for at := 0; at < len(body); at += size {
			end := min(at+size, len(body))
			all = append(all, packettest.IPv4{Src: netip.AddrFrom4([4]byte(p[12:16])), Dst: netip.AddrFrom4([4]byte(p[16:20])), Proto: p[9],
				ID: uint16(id), Offset: at, MoreFragments: end < len(body), NoDF: true, Payload: body[at:end]}.Bytes())
		}
		return all
	}
	body, next := p[40:], p[6]
	options := func(next uint8) []byte { return []byte{next, 0, 1, 4, 0, 0, 0, 0} }
	if behind {
		body, next = append(options(next), body...), 60
	}
	for at := 0; at < len(body); at += size {
		end := min(at+size, len(body))
		ext, first := packettest.Fragment6(next, at, end < len(body), id), uint8(44)
		if before {
			ext, first = append(options(44), ext...), 0
		}
		all = append(all, packettest.IPv6{Src: netip.AddrFrom16([16]byte(p[8:24])), Dst: netip.AddrFrom16([16]byte(p[24:40])),
			First: first, Extensions: ext, Payload: body[at:end]}.Bytes())
	}
	return all
}

func add(t testing.TB, r *packet.Reassembler, p []byte, now time.Time) []byte {
	t.Helper()
	var h packet.Header
	if err := packet.Parse(p, &h); err != nil || !h.IsFragment() {
		t.Fatalf("no fragment: %v", err)
	}
	return r.Add(p, &h, now)
}

func TestReassembler(t *testing.T) {
	now := time.Now()
	rnd := rand.New(rand.NewPCG(1, 2))
	var r packet.Reassembler
	for i := range 300 {
		ends := [][2]netip.AddrPort{four, six}[i%2]
		payload := randomBytes(1 + rnd.IntN(9000))
		parts := cut(packettest.UDP(ends[0], ends[1], payload), 8*(1+rnd.IntN(200)), uint32(i), i%3 == 0, i%5 == 0)
		if len(parts) == 1 {
			continue
		}
		rnd.Shuffle(len(parts), func(a, b int) { parts[a], parts[b] = parts[b], parts[a] })
		for n, p := range parts {
			whole := add(t, &r, p, now)
			if n < len(parts)-1 {
				if whole == nil {
					whole = add(t, &r, p, now) // networks repeat
				}
				if whole != nil {
					t.Fatalf("datagram %d is whole after %d of %d parts", i, n+1, len(parts))
				}
				continue
			}
			var h packet.Header
			if err := packet.Parse(whole, &h); err != nil || h.IsFragment() || !packet.VerifyChecksum(whole, &h) {
				t.Fatalf("datagram %d of %d parts: %v, %+v", i, len(parts), err, h)
			}
			if h.Src != ends[0].Addr() || h.DstPort != ends[1].Port() || !bytes.Equal(whole[h.HeaderLen+h.L4Len:h.TotalLen], payload) {
				t.Fatalf("datagram %d is another: %+v", i, h)
			}
			if plain := packet.AppendPlain(nil, whole, &h); packet.Parse(plain, &h) != nil || h.HasOptions || !packet.VerifyChecksum(plain, &h) ||
				!bytes.Equal(plain[h.HeaderLen+h.L4Len:], payload) {
				t.Fatalf("datagram %d, plain: %+v", i, h)
			}
		}
	}
}

func TestReassemblerBelievesNoOverlap(t *testing.T) {
	now := time.Now()
	for name, ends := range map[string][2]netip.AddrPort{"IPv4": four, "IPv6": six} {
		whole := packettest.UDP(ends[0], ends[1], randomBytes(100))
		other := packettest.UDP(ends[0], ends[1], randomBytes(200))
		a, b := cut(whole, 40, 7, false, false), cut(other, 64, 7, false, false)
		for what, parts := range map[string][][]byte{
			"overlapping parts":           {a[0], b[1], a[1], a[2]},
			"the same place, other bytes": {a[0], b[0], a[1], a[2]},
			"two ends":                    {a[0], a[2], b[3], a[1]},
			"an end before what there is": {b[3], a[0], a[2], a[1]},
		} {
			var r packet.Reassembler
			for _, p := range parts {
				if add(t, &r, p, now) != nil {
					t.Errorf("%s, %s: it was put together", name, what)
				}
			}
		}
		// Half of it that never came is forgotten; an old half is no part of a new one.
		var r packet.Reassembler
		add(t, &r, a[0], now)
		add(t, &r, a[1], now)
		if add(t, &r, a[2], now.Add(time.Minute)) != nil {
			t.Errorf("%s: put together after a minute", name)
		}
		// As many as one likes: the oldest go.
		for i := range uint32(200) {
			add(t, &r, cut(whole, 40, 100+i, false, false)[0], now)
		}
		for i, want := range map[uint32]bool{100: false, 299: true} {
			parts := cut(whole, 40, i, false, false)
			add(t, &r, parts[1], now)
			if got := add(t, &r, parts[2], now) != nil; got != want {
				t.Errorf("%s: datagram %d put together: %t", name, i, got)
			}
		}
	}
}

// FuzzReassembler: a container sends any fragments in any order. What is put together
// parses, if at all, as the family that it came in, and nothing is held beyond the
// bounds.
func FuzzReassembler(f *testing.F) {
	for _, ends := range [][2]netip.AddrPort{four, six} {
		var b []byte
		for _, p := range cut(packettest.UDP(ends[0], ends[1], randomBytes(100)), 40, 7, true, true) {
			b = append(append(b, byte(len(p))), p...)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r packet.Reassembler
		now := time.Now()
		for len(b) > 1 {
			n := min(int(b[0]), len(b)-1)
			p := b[1 : 1+n]
			b = b[1+n:]
			if len(p) >= 20 && int(p[0]&15)*4 <= len(p) {
				packettest.Fix(p)
			}
			var h, w packet.Header
			if packet.Parse(p, &h) != nil || !h.IsFragment() {
				continue
			}
			if whole := r.Add(p[:h.TotalLen], &h, now); whole != nil && packet.Parse(whole, &w) == nil &&
				(w.IPv6 != h.IPv6 || w.Src != h.Src || w.Dst != h.Dst || w.TotalLen != len(whole)) {
				t.Errorf("% x is % x", p, whole)
			}
			if n := r.Held(); n > 1<<20 {
				t.Errorf("%d bytes are held", n)
			}
		}
	})
}
