package datapath

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"tulle/overlay/packet/packettest"
)

// cutUp is a packet in fragments of size bytes of payload.
func cutUp(p []byte, id uint16, size int) [][]byte {
	var parts [][]byte
	if p[0]>>4 == 6 {
		for at := 0; at < len(p)-40; at += size {
			to := min(at+size, len(p)-40)
			parts = append(parts, packettest.IPv6{
				Src: netip.AddrFrom16([16]byte(p[8:24])), Dst: netip.AddrFrom16([16]byte(p[24:40])), First: 44,
				Extensions: packettest.Fragment6(p[6], at, to < len(p)-40, uint32(id)<<16|1), Payload: p[40:][at:to],
			}.Bytes())
		}
		return parts
	}
	src, dst := addrOf(p[12:16]), addrOf(p[16:20])
	payload := p[20:]
	for at := 0; at < len(payload); at += size {
		to := min(at+size, len(payload))
		parts = append(parts, packettest.IPv4{
			Src: src, Dst: dst, Proto: p[9], ID: id, Offset: at, MoreFragments: to < len(payload), NoDF: true,
			Payload: payload[at:to],
		}.Bytes())
	}
	return parts
}

func fragmentPair(t *testing.T, f func(t *testing.T, w *world, client, server *container)) {
	pairs(t, func(t *testing.T, w *world, client, server *container) {
		w.allow("web db udp 53")
		f(t, w, client, server)
	})
}

// payloads is what the container's stack would put together of these fragments.
func payloads(all []received) map[int]int {
	m := map[int]int{}
	for _, r := range all {
		m[r.h.FragmentOffset] = r.h.PartLen
	}
	return m
}

func TestFragmentsArriveInAnyOrder(t *testing.T) {
	fragmentPair(t, func(t *testing.T, w *world, client, server *container) {
		for i := range 50 {
			p := packettest.UDP(client.at(9), server.at(53), make([]byte, 4000))
			parts := cutUp(p, uint16(i), 1424)
			rand.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
			for _, q := range parts {
				client.send(q)
			}
			got := payloads(server.got())
			if len(got) != 3 || got[0] != 1424 || got[1424] != 1424 || got[2848] != 4008-2848 {
				t.Fatalf("arrived: %v", got)
			}
		}
		for _, c := range w.cells {
			for _, k := range []*fragments{&c.path.in.frags, &client.ep.w.frags} {
				if len(k.datagrams) != 0 || k.waiting != 0 {
					t.Errorf("%d datagrams and %d bytes are kept of complete ones", len(k.datagrams), k.waiting)
				}
			}
		}
	})
}

func TestFragmentsOnTheWireInAnyOrder(t *testing.T) {
	w := newWorld(t)
	a, b := w.cell(1), w.cell(2)
	client, server := a.container("web", 2), b.container("db", 3)
	w.allow("web db udp 53")
	var held []wire
	w.tap = func(d *wire) bool { held = append(held, *d); return false }
	for _, q := range cutUp(packettest.UDP(client.at(9), server.at(53), make([]byte, 4000)), 7, 1424) {
		client.send(q)
	}
	w.tap = nil
	for _, i := range []int{2, 1, 1, 0, 0} { // the wire repeats, too
		b.frame(held[i].from, held[i].b)
	}
	if got := payloads(server.got()); len(got) != 3 {
		t.Errorf("arrived: %v", got)
	}
}

func TestFragmentsWithoutAVerdictDoNotPass(t *testing.T) {
	fragmentPair(t, func(t *testing.T, w *world, client, server *container) {
		denied := cutUp(packettest.UDP(client.at(9), server.at(54), make([]byte, 3000)), 1, 1424)
		client.send(denied[1]) // waits
		client.send(denied[0])
		client.send(denied[2])
		if got := server.got(); len(got) != 0 {
			t.Errorf("arrived: %v", got)
		}
		client.expect(client.refused(client.cell))

		// Behind a cut the rest of a datagram does not pass.
		parts := cutUp(packettest.UDP(client.at(9), server.at(53), make([]byte, 3000)), 2, 1424)
		client.send(parts[0])
		if got := server.got(); len(got) != 1 {
			t.Fatalf("%d arrived, want the first", len(got))
		}
		w.forbid("web db udp 53")
		server.got()
		client.got()
		client.send(parts[1])
		server.expect()
		w.allow("web db udp 53")

		// Those that wait for no first are let go.
		before := client.cell.path.Stats()
		client.send(cutUp(packettest.UDP(client.at(9), server.at(53), make([]byte, 3000)), 3, 1424)[1])
		client.cell.path.Tick(60)
		client.send(cutUp(packettest.UDP(client.at(9), server.at(53), make([]byte, 3000)), 4, 1424)[1])
		client.cell.dropped(before, FragmentExpired)
	})
}

// What is refused takes no room: a container that sends large datagrams to where it may
// not, or pings with large packets, sends those that are allowed as well.
func TestRefusedFragmentsTakeNoRoom(t *testing.T) {
	fragmentPair(t, func(t *testing.T, w *world, client, server *container) {
		for i := range 200 {
			parts := cutUp(packettest.UDP(client.at(9), server.at(54), make([]byte, 3000)), uint16(i), 1424)
			if i%2 == 1 { // and in another order
				parts[0], parts[2] = parts[2], parts[0]
			}
			for _, q := range parts {
				client.send(q)
			}
		}
		server.expect()
		for _, q := range cutUp(packettest.UDP(client.at(9), server.at(53), make([]byte, 3000)), 1000, 1424) {
			client.send(q)
		}
		if got := payloads(server.got()); len(got) != 3 {
			t.Errorf("arrived of an allowed datagram: %v, want all three parts", got)
		}
		if n := len(client.ep.w.frags.datagrams); n != 0 {
			t.Errorf("%d datagrams are kept", n)
		}
	})
}

func TestFragmentsThatOverlapEndTheDatagram(t *testing.T) {
	fragmentPair(t, func(t *testing.T, w *world, client, server *container) {
		parts := cutUp(packettest.UDP(client.at(9), server.at(53), make([]byte, 3000)), 1, 1424)
		overlap := packettest.IPv4{Proto: 17, ID: 1, Offset: 1416, MoreFragments: true, Payload: make([]byte, 800)}
		overlap6 := packettest.IPv6{Src: client.addr, Dst: server.addr, First: 44, Extensions: packettest.Fragment6(17, 1416, true, 1<<16|1), Payload: make([]byte, 800)}
		client.send(parts[0])
		if client.addr.Is6() {
			client.send(overlap6.Bytes())
		} else {
			overlap.Src, overlap.Dst = client.addr, server.addr
			client.send(overlap.Bytes())
		}
		client.send(parts[1])
		client.send(parts[2])
		if got := server.got(); len(got) != 1 {
			t.Errorf("arrived: %v, want the first alone", got)
		}
	})
}

func TestTinyFragmentsAreRefused(t *testing.T) {
	w := newWorld(t)
	a := w.cell(1)
	client, server := a.container("web", 2), a.container("db", 3)
	w.allow("web db tcp 80")
	syn := packettest.TCP(client.at(9), server.at(80), fSYN, 1, 0, make([]byte, 100))
	before := a.path.Stats()
	first := packettest.IPv4{Src: client.addr, Dst: server.addr, Proto: 6, ID: 1, MoreFragments: true, Payload: syn[20:28]}.Bytes()
	second := packettest.IPv4{Src: client.addr, Dst: server.addr, Proto: 6, ID: 1, Offset: 8, Payload: syn[28:]}.Bytes()
	client.send(first)
	client.send(second)
	a.dropped(before, TinyFragment, TinyFragment)
	server.expect()

	c, s := twin(client.at(9)), twin(server.at(80))
	syn = packettest.TCP(c, s, fSYN, 1, 0, make([]byte, 100))
	before = a.path.Stats()
	for _, part := range []struct {
		at   int
		more bool
		p    []byte
	}{{0, true, syn[40:48]}, {8, false, syn[48:]}} {
		client.send(packettest.IPv6{Src: c.Addr(), Dst: s.Addr(), First: 44, Extensions: packettest.Fragment6(6, part.at, part.more, 1), Payload: part.p}.Bytes())
	}
	drops := a.path.Stats().Egress.Drops
	if n := drops[TinyFragment] - before.Egress.Drops[TinyFragment]; n == 0 {
		t.Error("IPv6: the tiny first part is not refused as such")
	}
	server.expect()
}

// However many a source sends, memory and the others' share are bounded.
func TestFragmentMemoryIsBounded(t *testing.T) {
	w := newWorld(t)
	a, b := w.cell(1), w.cell(2, func(o *Options) { o.Limits.Fragments, o.Limits.FragmentBytes = 64, 64<<10 })
	flood, client, server := a.container("web", 2), a.container("web", 4), b.container("db", 3)
	w.allow("web db udp 53")
	for i := range 1000 {
		p := packettest.IPv4{Src: flood.addr, Dst: server.addr, Proto: 17, ID: uint16(i), Offset: 1424, MoreFragments: true, Payload: make([]byte, 1424)}
		b.frame(a.underlay, sealed(b, tags["web"], p.Bytes()))
	}
	f := &b.path.in.frags
	if len(f.datagrams) > 16 || f.waiting > 64<<10 {
		t.Errorf("one source has %d datagrams and %d bytes", len(f.datagrams), f.waiting)
	}
	for _, q := range cutUp(packettest.UDP(client.at(9), server.at(53), make([]byte, 4000)), 7, 1424) {
		client.send(q)
	}
	if got := payloads(server.got()); len(got) != 3 {
		t.Errorf("another source's fragments arrived as %v", got)
	}
	if n := b.path.Stats().Ingress.Drops[FragmentsFull]; n != 1000-16 {
		t.Errorf("%d drops for want of room", n)
	}
}
