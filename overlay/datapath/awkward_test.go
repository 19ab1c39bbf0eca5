package datapath

import (
	"fmt"
	"testing"

	"tulle/overlay/fib"
	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
)

// Options that ask for no way of their own are carried as they are.
func TestIPOptionsPass(t *testing.T) {
	pairs4(t, func(t *testing.T, w *world, client, server *container) {
		w.allow("web db tcp 80")
		w.allow("web db udp 53")
		for name, options := range map[string][]byte{
			"no-ops":       {1, 1, 1, 1},
			"router alert": {148, 4, 0, 0},
			"record route": {7, 7, 4, 0, 0, 0, 0, 0},
			"timestamp":    {68, 8, 5, 0, 0, 0, 0, 0},
		} {
			udp := packettest.UDP(client.at(9), server.at(53), []byte("x"))
			p := packettest.IPv4{Src: client.addr, Dst: server.addr, Proto: 17, Options: options, Payload: udp[20:]}.Bytes()
			client.send(p)
			got := server.expect(fmt.Sprintf("udp %s>%s", client.at(9), server.at(53)))
			if o := got[0].p[20:got[0].h.HeaderLen]; string(o) != string(options) {
				t.Errorf("%s: arrived as % x", name, o)
			}
		}
		syn := packettest.TCP(client.at(9), server.at(80), fSYN, 1, 0, nil)
		client.send(packettest.IPv4{Src: client.addr, Dst: server.addr, Proto: 6, Options: []byte{148, 4, 0, 0}, Payload: syn[20:]}.Bytes())
		server.expect(fmt.Sprintf("tcp %s>%s S", client.at(9), server.at(80)))
		// They change no verdict.
		syn = packettest.TCP(client.at(9), server.at(81), fSYN, 1, 0, nil)
		client.send(packettest.IPv4{Src: client.addr, Dst: server.addr, Proto: 6, Options: []byte{148, 4, 0, 0}, Payload: syn[20:]}.Bytes())
		server.expect()
	})
}

// So are IPv6's extension headers; a routing header is not.
func TestExtensionHeadersPass(t *testing.T) {
	pairsOf(t, true, func(t *testing.T, w *world, client, server *container) {
		w.allow("web db udp 53")
		udp := packettest.UDP(client.at(9), server.at(53), []byte("x"))
		other := packettest.UDP(client.at(9), server.at(54), []byte("x"))
		for _, first := range []uint8{0, 60} {
			header := []byte{17, 0, 1, 4, 0, 0, 0, 0}
			p := packettest.IPv6{Src: client.addr, Dst: server.addr, Proto: 17, First: first, Extensions: header, Payload: udp[40:]}
			client.send(p.Bytes())
			if got := server.expect(fmt.Sprintf("udp %s>%s", client.at(9), server.at(53))); string(got[0].p[40:48]) != string(header) {
				t.Errorf("arrived with % x", got[0].p[40:48])
			}
			p.Payload = other[40:]
			client.send(p.Bytes())
			server.expect()
			client.expect(client.refused(client.cell))
		}
		before := client.cell.path.Stats()
		client.send(packettest.IPv6{Src: client.addr, Dst: server.addr, Proto: 17, First: 43, Extensions: make([]byte, 8), Payload: udp[40:]}.Bytes())
		client.send(packettest.IPv6{Src: client.addr, Dst: server.addr, Proto: 17, First: 43, Extensions: []byte{17, 0, 0, 0, 0, 0, 0, 0}, Payload: udp[40:]}.Bytes())
		server.expect()
		client.cell.dropped(before, BadPacket, SourceRoute)
	})
}

// RFC 6040: the outer header carries the packet's bits, and what a router on the
// underlay makes of them reaches the packet.
func TestECNIsCarriedAsRFC6040Says(t *testing.T) {
	t.Run("IPv4", func(t *testing.T) { carriesECN(t, false) })
	t.Run("IPv6", func(t *testing.T) { carriesECN(t, true) })
}

func carriesECN(t *testing.T, v6 bool) {
	w := newWorld(t)
	w.v6 = v6
	gso := packet.Virtio{Flags: packet.VirtioNeedsChecksum, GSOType: packet.GSOTCPv4, GSOSize: 1000, CsumStart: 20, CsumOffset: 16}
	if v6 {
		gso.GSOType, gso.CsumStart = packet.GSOTCPv6, 40
	}
	a, b := w.cell(1), w.cell(2)
	client, server := a.container("web", 2), b.container("db", 3)
	w.allow("web db tcp 80")
	connect(client, 4000, server, 80)
	const dropped = 99
	n := uint32(101)
	for _, c := range []struct {
		inner, outer, want packet.ECN
	}{
		{packet.NotECT, packet.NotECT, packet.NotECT}, {packet.NotECT, packet.ECT0, packet.NotECT},
		{packet.NotECT, packet.ECT1, packet.NotECT}, {packet.NotECT, packet.CE, dropped},
		{packet.ECT0, packet.NotECT, packet.ECT0}, {packet.ECT0, packet.ECT0, packet.ECT0},
		{packet.ECT0, packet.ECT1, packet.ECT1}, {packet.ECT0, packet.CE, packet.CE},
		{packet.ECT1, packet.NotECT, packet.ECT1}, {packet.ECT1, packet.ECT0, packet.ECT1},
		{packet.ECT1, packet.ECT1, packet.ECT1}, {packet.ECT1, packet.CE, packet.CE},
		{packet.CE, packet.NotECT, packet.CE}, {packet.CE, packet.ECT0, packet.CE},
		{packet.CE, packet.ECT1, packet.CE}, {packet.CE, packet.CE, packet.CE},
	} {
		const dscp = 0xb8 // is the packet's own business, and stays as it is
		w.tap = func(d *wire) bool {
			if packet.ECN(d.ecn) != c.inner {
				t.Errorf("inner %d: outer %d when it leaves", c.inner, d.ecn)
			}
			d.ecn = uint8(c.outer)
			return true
		}
		before := b.path.Stats()
		// A super-packet too: its frames have the bits each.
		payload := make([]byte, 2000)
		client.sendVirtio(gso, packettest.TCPSegment{Src: client.at(4000), Dst: server.at(80), Flags: fACK, Seq: n, Ack: 501, TOS: dscp | uint8(c.inner), Payload: payload}.Bytes())
		n += 2000
		got := server.got()
		if c.want == dropped {
			if len(got) != 0 {
				t.Errorf("inner %d, outer %d: arrived", c.inner, c.outer)
			}
			b.dropped(before, Congested, Congested)
			continue
		}
		if len(got) != 1 || len(got[0].payload()) != 2000 {
			t.Fatalf("inner %d, outer %d: arrived as %v", c.inner, c.outer, got)
		}
		if tos := got[0].h.TOS; tos != dscp|uint8(c.want) {
			t.Errorf("inner %d, outer %d: TOS %#x, want %#x", c.inner, c.outer, tos, dscp|uint8(c.want))
		}
	}
}

// small makes frames with packets of more than n bytes disappear, without a word.
func (w *world) small(n int) {
	w.tap = func(d *wire) bool { return len(d.b) <= headroom+n }
}

// mss is the option that a SYN needs to be clamped.
func mss(n int) []byte { return []byte{2, 4, byte(n >> 8), byte(n)} }

// A path smaller than anybody knows, and nobody who says so: probing finds it, TCP
// is split and clamped to it, other packets are fragmented or their sender told.
func TestSmallPathWithoutAnyICMP(t *testing.T) {
	w := newWorld(t)
	mtu := func(o *Options) { o.MTU = 1450 }
	a, b := w.cell(1, mtu), w.cell(2, mtu)
	client, server := a.container("web", 2), b.container("db", 3)
	w.allow("web db tcp 80")
	w.allow("web db udp 53")
	const way = 1246 // 1,296 on the underlay
	w.small(way)
	connect(client, 4000, server, 80) // first use
	for range 10 {
		for _, c := range w.cells {
			c.fib.Load().Peers(func(p *fib.Peer) { p.Link.Used.Store(true) })
			c.path.Tick(c.path.flows.Now() + 1)
			w.pump()
		}
	}
	for _, c := range w.cells {
		c.fib.Load().Peers(func(p *fib.Peer) {
			if m := c.path.wayMTU(p); m > way || m <= way-8 {
				t.Fatalf("%s found a way of %d, it is %d", c.name, m, way)
			}
		})
	}
	found := a.path.wayMTU(a.fib.Load().Peer("cell-2"))

	// A super-packet for the larger MTU arrives, whole.
	client.sendVirtio(packet.Virtio{Flags: packet.VirtioNeedsChecksum, GSOType: packet.GSOTCPv4, GSOSize: 1410, CsumStart: 20, CsumOffset: 16},
		packettest.TCP(client.at(4000), server.at(80), fACK, 101, 501, make([]byte, 8000)))
	n := 0
	for _, r := range server.got() {
		n += len(r.payload())
	}
	if n != 8000 {
		t.Errorf("%d bytes of 8000 arrived", n)
	}

	// A single packet with DF is answered with what fits.
	client.send(packettest.TCP(client.at(4000), server.at(80), fACK, 8101, 501, make([]byte, 1400)))
	got := client.expect(fmt.Sprintf("icmp %s>%s 3/4", a.subnet.Addr(), client.addr))
	if m := int(got[0].p[26])<<8 | int(got[0].p[27]); m != found {
		t.Errorf("the answer names %d, the way has %d", m, found)
	}
	server.expect()

	// One without DF is fragmented, one that is a fragment again.
	whole := packettest.UDP(client.at(9), server.at(53), make([]byte, 1400))
	client.send(cutUp(whole, 1, 1480)[0])
	if got := payloads(server.got()); len(got) != 2 || got[0]+got[(found-20)&^7] != 1408 {
		t.Errorf("a packet without DF arrived as %v", got)
	}
	for _, q := range cutUp(packettest.UDP(client.at(9), server.at(53), make([]byte, 4000)), 2, 1424) {
		client.send(q)
	}
	sum := 0
	for _, n := range payloads(server.got()) {
		sum += n
	}
	if sum != 4008 {
		t.Errorf("%d bytes of a datagram of 4008 arrived", sum)
	}

	// What a SYN announces is what fits, at whichever end it came by.
	w.tap = nil
	for i, v := range []packet.Virtio{{}, {Flags: packet.VirtioNeedsChecksum, CsumStart: 20, CsumOffset: 16}} {
		p := packettest.TCPSegment{Src: client.at(uint16(5000 + i)), Dst: server.at(80), Flags: fSYN, Seq: 1, Options: mss(1410)}.Bytes()
		if v.Flags != 0 {
			partialChecksum(p)
		}
		client.sendVirtio(v, p)
		r := server.got()[0]
		if m := int(r.p[42])<<8 | int(r.p[43]); m != found-40 {
			t.Errorf("announced %d, want %d", m, found-40)
		}
	}
	server.send(packettest.TCPSegment{Src: server.at(80), Dst: client.at(5000), Flags: fSYN | fACK, Seq: 1, Ack: 2, Options: mss(1300)}.Bytes())
	r := client.got()[0]
	if m := int(r.p[42])<<8 | int(r.p[43]); m > found-40 {
		t.Errorf("announced %d to the client", m)
	}
}

// partialChecksum leaves only the pseudo header's sum, as a stack with checksum
// offload does.
func partialChecksum(p []byte) {
	length := len(p) - 20
	s := packettest.Sum(p[12:20], []byte{0, p[9], byte(length >> 8), byte(length)})
	p[36], p[37] = byte(s>>8), byte(s)
}

// A peer cannot make a cell believe in a path by echoes that it was not asked for,
// nor use the cell's answers for more than it sends.
func TestProbesAreTheirAskersAlone(t *testing.T) {
	w := newWorld(t)
	a, b := w.cell(1, func(o *Options) { o.MTU = 1450 }), w.cell(2)
	client, server := a.container("web", 2), b.container("db", 3)
	w.allow("web db udp 53")
	client.send(packettest.UDP(client.at(9), server.at(53), nil))
	server.got()
	before := a.path.Stats()
	forged := packet.AppendEcho(nil, b.subnet.Addr(), a.subnet.Addr(), true, 1, 600, make([]byte, 8), 0)
	a.frame(b.underlay, sealed(a, 0, forged))
	a.dropped(before, OutsideLease)
	if m := a.path.wayMTU(a.fib.Load().Peer("cell-2")); m != 1450 {
		t.Errorf("believes in %d", m)
	}
	answers, bytes := 0, 0
	w.tap = func(d *wire) bool { answers++; bytes += len(d.b); return true }
	for range 1000 {
		a.frame(b.underlay, sealed(a, 0, packet.AppendEcho(nil, b.subnet.Addr(), a.subnet.Addr(), false, 1, 1, make([]byte, 64), 1400)))
	}
	if answers != 100 || bytes > 200*answers {
		t.Errorf("%d answers of %d bytes", answers, bytes)
	}
}
