package datapath

import (
	"fmt"
	"testing"

	"tulle/overlay/fib"
	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
	"tulle/overlay/vxlan"
)

// What a container is refused over IPv4 it is refused over IPv6: to be another, to
// send to all, to reach a cell, the world or nobody.
func TestSpoofedAndMisdirectedIPv6(t *testing.T) {
	w := newWorld(t)
	a, b := w.cell(1), w.cell(2)
	k, neighbour, far := a.container("web", 2), a.container("web", 4), b.container("db", 3)
	silk := a.silk(77)
	w.allow("web db udp 53")
	own := fib.Twin(k.addr)
	udp := func(to string) []byte { return packettest.UDP(twin(k.at(9)), addrPort(to), nil) }
	gw := fib.Twin(a.subnet.Addr())
	icmp := func(what string) string { return fmt.Sprintf("icmp %s>%s %s", gw, own, what) }
	for _, c := range []struct {
		name   string
		p      []byte
		reason Reason
		answer string
	}{
		{"a neighbour's source", packettest.UDP(twin(neighbour.at(9)), twin(far.at(53)), nil), SpoofedSource, ""},
		{"a link-local source", packettest.UDP(addrPort("[fe80::1]:9"), twin(far.at(53)), nil), SpoofedSource, ""},
		{"its IPv4 address in IPv6's clothes", packettest.UDP(addrPort("[::ffff:10.255.1.2]:9"), twin(far.at(53)), nil), BadPacket, ""},
		{"itself", packettest.UDP(twin(k.at(9)), twin(k.at(53)), nil), SpoofedSource, ""},
		{"all nodes", udp("[ff02::1]:5353"), Multicast, ""},
		{"its cell", udp("[fd74:756c:6c65::aff:100]:4789"), CellAddress, icmp("1/4")},
		{"another cell", udp("[fd74:756c:6c65::aff:200]:4789"), CellAddress, icmp("1/4")},
		{"nobody", udp("[fd74:756c:6c65::aff:263]:53"), NoEndpoint, icmp("1/4")},
		{"nobody's lease", udp("[fd74:756c:6c65::aff:901]:53"), NoRoute, icmp("1/0")},
		{"a silk cell, which has no IPv6", udp(fmt.Sprintf("[%s]:53", fib.Twin(silk.Subnet.Addr().Next()))), NoEndpoint, icmp("1/4")},
		{"no policy", packettest.UDP(twin(k.at(9)), twin(far.at(54)), nil), NoPolicy, icmp("1/4")},
		{"echo", packettest.ICMP(own, fib.Twin(far.addr), 128, 0, 1, nil), ICMPDenied, icmp("1/4")},
		{"neighbour solicitation", packettest.ICMP(own, fib.Twin(far.addr), 135, 0, 0, make([]byte, 16)), ICMPDenied, icmp("1/4")},
		{"IPv4's ICMP", packettest.IPv6{Src: own, Dst: fib.Twin(far.addr), Proto: 1, Payload: []byte{8, 0, 0, 0, 0, 0, 0, 0}}.Bytes(), ICMPDenied, icmp("1/4")},
	} {
		t.Run(c.name, func(t *testing.T) {
			a.path.Tick(a.path.flows.Now() + 1)
			before := a.path.Stats()
			k.send(c.p)
			a.dropped(before, c.reason)
			if c.answer == "" {
				k.expect()
			} else {
				k.expect(c.answer)
			}
			far.expect()
			if n := a.path.FlowCount(); n != 0 {
				t.Errorf("%d flows", n)
			}
		})
	}
}

// A frame's Ethernet type is its packet's; a silk peer has no IPv6; a cell of IPv4
// alone takes none, from containers and peers.
func TestFramesOfTheOtherFamily(t *testing.T) {
	w := newWorld(t)
	a, b := w.cell(1), w.cell(2)
	only := w.cell(3, func(o *Options) { o.IPv4Only = true })
	client, server, lone := a.container("web", 2), b.container("db", 3), only.container("db", 3)
	w.allow("web db udp 53")
	p6 := packettest.UDP(twin(client.at(9)), twin(server.at(53)), nil)
	before := b.path.Stats()
	b.frame(a.underlay, sealed(b, 1, p6, func(f *vxlan.Frame) { f.IPv6 = false }))
	b.frame(a.underlay, sealed(b, 1, packettest.UDP(client.at(9), server.at(53), nil), func(f *vxlan.Frame) { f.IPv6 = true }))
	silk := b.silk(77)
	b.frame(silk.Underlay, sealed(b, 1, packettest.UDP(twin(addrPort("10.255.77.2:9")), twin(server.at(53)), nil)))
	b.dropped(before, BadFrame, BadFrame, BadFrame)
	server.expect()
	before = only.path.Stats()
	client.send(packettest.UDP(twin(client.at(9)), twin(lone.at(53)), nil))
	lone.send(packettest.UDP(twin(lone.at(9)), twin(client.at(53)), nil))
	only.dropped(before, NotIP, NotIP)
	lone.expect()
}

// A policy and an endpoint are one for both families: what ends, ends both.
func TestIPv6EndsWithItsEndpoint(t *testing.T) {
	w := newWorld(t)
	w.v6 = true
	a, b := w.cell(1), w.cell(2)
	client, server := a.container("web", 2), b.container("db", 3)
	w.allow("web db tcp 80")
	connect(client, 4000, server, 80)
	a.fib.Update(func(bu *fib.Builder) { bu.DeleteRemote(fib.Name(server.addr)) })
	if n := a.path.CutEndpoint(fib.Name(server.addr), server.incarnation); n != 1 {
		t.Errorf("%d flows ended", n)
	}
	if got := client.got(); len(got) == 0 || got[0].h.Proto != packet.ProtoTCP || got[0].h.TCPFlags&fRST == 0 || !got[0].h.IPv6 {
		t.Errorf("the client got %v", got)
	}
}

// ICMPv6 errors pass as ICMP's do: from the flow's other end or its cell, and only
// with the header of what the receiver has sent, in the flow's window.
func TestICMPErrorsOfIPv6Flows(t *testing.T) {
	w := newWorld(t)
	w.v6 = true
	a, b, c3 := w.cell(1), w.cell(2), w.cell(3)
	client, server, neighbour, third := a.container("web", 2), b.container("db", 3), b.container("db", 4), c3.container("db", 5)
	w.allow("web db tcp 80")
	w.allow("web db udp 53")
	connect(client, 4000, server, 80)
	sent := packettest.TCP(client.at(4000), server.at(80), fACK|fPSH, 101, 501, []byte("data"))
	client.send(sent)
	asked := packettest.UDP(client.at(4001), server.at(53), nil)
	client.send(asked)
	server.got()
	cell, other := fib.Twin(b.subnet.Addr()), fib.Twin(c3.subnet.Addr())
	tcp := func(seq uint32, port uint16) []byte {
		return packettest.TCP(client.at(4000), server.at(port), fACK, seq, 501, nil)
	}
	for _, c := range []struct {
		name string
		from *testCell
		p    []byte
		pass bool
	}{
		{"too big, from the other end", b, packettest.ICMP(server.addr, client.addr, 2, 0, 1300, sent), true},
		{"too big, from its cell", b, packettest.ICMP(cell, client.addr, 2, 0, 1300, sent), true},
		{"port unreachable, about UDP", b, packettest.ICMP(cell, client.addr, 1, 4, 0, asked), true},
		{"hop limit", b, packettest.ICMP(cell, client.addr, 3, 0, 0, sent), true},
		{"from its neighbour", b, packettest.ICMP(neighbour.addr, client.addr, 2, 0, 1300, sent), false},
		{"from another cell", c3, packettest.ICMP(other, client.addr, 2, 0, 1300, sent), false},
		{"from another cell's container", c3, packettest.ICMP(third.addr, client.addr, 2, 0, 1300, sent), false},
		{"beyond the window", b, packettest.ICMP(server.addr, client.addr, 2, 0, 1300, tcp(101+1<<20, 80)), false},
		{"acknowledged long ago", b, packettest.ICMP(server.addr, client.addr, 2, 0, 1300, tcp(50, 80)), false},
		{"no such flow", b, packettest.ICMP(server.addr, client.addr, 2, 0, 1300, tcp(101, 81)), false},
		{"quotes what the receiver did not send", b, packettest.ICMP(server.addr, client.addr, 2, 0, 1300, packettest.TCP(server.at(80), client.at(4000), fACK, 501, 101, nil)), false},
		{"quote too short", b, packettest.ICMP(server.addr, client.addr, 2, 0, 1300, sent[:44]), false},
		{"echo from the cell", b, packettest.ICMP(cell, client.addr, 128, 0, 1, nil), false},
		{"redirect", b, packettest.ICMP(cell, client.addr, 137, 0, 0, sent), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			a.frame(c.from.underlay, sealed(a, 0, c.p))
			if got := len(client.got()); (got == 1) != c.pass {
				t.Errorf("%d packets arrived, want to pass: %t", got, c.pass)
			}
		})
	}
}

// What is too big for the way is told of by the daemon, and a SYN announces no more
// than fits, over IPv6 as over IPv4.
func TestMTUOverIPv6(t *testing.T) {
	w := newWorld(t)
	w.v6 = true
	a, b := w.cell(1, func(o *Options) { o.MTU = 1300 }), w.cell(2)
	client, server := a.container("web", 2), b.container("db", 3)
	w.allow("web db tcp 80")
	w.allow("web db udp 53")
	connect(client, 4000, server, 80)
	for _, p := range [][]byte{
		packettest.UDP(client.at(1), server.at(53), make([]byte, 1400)),
		packettest.TCP(client.at(4000), server.at(80), fACK, 101, 501, make([]byte, 1400)),
	} {
		client.send(p)
		got := client.expect(fmt.Sprintf("icmp %s>%s 2/0", fib.Twin(a.subnet.Addr()), client.addr))
		if mtu := int(got[0].p[46])<<8 | int(got[0].p[47]); mtu != 1300 {
			t.Errorf("names MTU %d", mtu)
		}
		server.expect()
	}
	longest := 0
	w.tap = func(d *wire) bool { longest = max(longest, len(d.b)); return true }
	client.sendVirtio(packet.Virtio{Flags: packet.VirtioNeedsChecksum, GSOType: packet.GSOTCPv6, GSOSize: 1400, CsumStart: 40, CsumOffset: 16},
		packettest.TCP(client.at(4000), server.at(80), fACK, 101, 501, make([]byte, 8000)))
	n := 0
	for _, r := range server.got() {
		n += len(r.payload())
	}
	if n != 8000 || longest != headroom+1300 {
		t.Errorf("%d bytes of 8000 arrived, in frames of up to %d", n, longest)
	}
	w.tap = nil
	client.send(packettest.TCPSegment{Src: client.at(5000), Dst: server.at(80), Flags: fSYN, Seq: 1, Options: mss(1410)}.Bytes())
	r := server.got()[0]
	if m := int(r.p[62])<<8 | int(r.p[63]); m != 1300-60 {
		t.Errorf("announced %d, want %d", m, 1300-60)
	}
}
