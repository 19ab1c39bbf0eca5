package datapath

import (
	"fmt"
	"testing"

	"tulle/overlay/fib"
	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
)

// pairs runs a test with client and server on one cell and on two.
// It does so over both families.
func pairs(t *testing.T, f func(t *testing.T, w *world, client, server *container)) {
	t.Run("IPv4", func(t *testing.T) { pairsOf(t, false, f) })
	t.Run("IPv6", func(t *testing.T) { pairsOf(t, true, f) })
}

// pairs4 is pairs over IPv4 alone.
func pairs4(t *testing.T, f func(t *testing.T, w *world, client, server *container)) {
	pairsOf(t, false, f)
}

func pairsOf(t *testing.T, v6 bool, f func(t *testing.T, w *world, client, server *container)) {
	t.Run("same cell", func(t *testing.T) {
		w := newWorld(t)
		w.v6 = v6
		c := w.cell(1)
		f(t, w, c.container("web", 2), c.container("db", 3))
	})
	t.Run("across cells", func(t *testing.T) {
		w := newWorld(t)
		w.v6 = v6
		a, b := w.cell(1), w.cell(2)
		f(t, w, a.container("web", 2), b.container("db", 3))
	})
}

// refused is the ICMP port unreachable that the cell sends the container.
func (k *container) refused(by *testCell) string {
	if k.addr.Is6() {
		return fmt.Sprintf("icmp %s>%s 1/4", fib.Twin(by.subnet.Addr()), k.addr)
	}
	return fmt.Sprintf("icmp %s>%s 3/3", by.subnet.Addr(), k.addr)
}

func TestWithoutPolicyRefusedAtOnce(t *testing.T) {
	pairs(t, func(t *testing.T, w *world, client, server *container) {
		before := client.cell.path.Stats()
		client.send(packettest.TCP(client.at(4000), server.at(80), fSYN, 100, 0, nil))
		got := client.expect(fmt.Sprintf("tcp %s>%s RA", server.at(80), client.at(4000)))
		if h := got[0].h; h.Ack != 101 {
			t.Errorf("reset acknowledges %d, want 101", h.Ack)
		}
		client.send(packettest.UDP(client.at(4000), server.at(80), []byte("x")))
		client.expect(client.refused(client.cell))
		server.expect()
		client.cell.dropped(before, NoPolicy, NoPolicy)
		if n := client.cell.path.FlowCount(); n != 0 {
			t.Errorf("%d flows recorded without a verdict", n)
		}
	})
}

func TestPolicyLetsConnectionAndRepliesPass(t *testing.T) {
	pairs(t, func(t *testing.T, w *world, client, server *container) {
		w.allow("web db tcp 80-90")
		connect(client, 4000, server, 85)
		server.send(packettest.TCP(server.at(85), client.at(4000), fACK|fPSH, 501, 101, []byte("hello")))
		if got := client.expect(fmt.Sprintf("tcp %s>%s PA", server.at(85), client.at(4000))); got[0].payload() != "hello" {
			t.Errorf("payload %q", got[0].payload())
		}
		// Another port, the other direction, another protocol.
		client.send(packettest.TCP(client.at(4000), server.at(91), fSYN, 1, 0, nil))
		client.expect(fmt.Sprintf("tcp %s>%s RA", server.at(91), client.at(4000)))
		server.send(packettest.TCP(server.at(4000), client.at(85), fSYN, 1, 0, nil))
		server.expect(fmt.Sprintf("tcp %s>%s RA", client.at(85), server.at(4000)))
		client.send(packettest.UDP(client.at(4000), server.at(85), nil))
		client.expect(client.refused(client.cell))
		server.expect()
	})
}

func TestUDPRepliesPassByTheirFlowAlone(t *testing.T) {
	pairs(t, func(t *testing.T, w *world, client, server *container) {
		w.allow("web db udp 53")
		server.send(packettest.UDP(server.at(53), client.at(4000), []byte("early")))
		server.expect(server.refused(server.cell))
		client.send(packettest.UDP(client.at(4000), server.at(53), []byte("q")))
		server.expect(fmt.Sprintf("udp %s>%s", client.at(4000), server.at(53)))
		server.send(packettest.UDP(server.at(53), client.at(4000), []byte("a")))
		client.expect(fmt.Sprintf("udp %s>%s", server.at(53), client.at(4000)))
		// Another port of the client's is another flow.
		server.send(packettest.UDP(server.at(53), client.at(4001), []byte("a")))
		client.expect()
		server.expect(server.refused(server.cell))
	})
}

// Either end may refuse, neither alone allows.
func TestBothEndsJudge(t *testing.T) {
	for _, here := range []string{"source", "destination"} {
		t.Run("only the "+here+" allows", func(t *testing.T) {
			w := newWorld(t)
			a, b := w.cell(1), w.cell(2)
			client, server := a.container("web", 2), b.container("db", 3)
			if here == "source" {
				a.policies.Add(rule("web db tcp 80"))
			} else {
				b.policies.Add(rule("web db tcp 80"))
			}
			client.send(packettest.TCP(client.at(4000), server.at(80), fSYN, 100, 0, nil))
			server.expect()
			client.expect(fmt.Sprintf("tcp %s>%s RA", server.at(80), client.at(4000)))
			if n := b.path.FlowCount(); n != 0 {
				t.Errorf("%d flows at the destination", n)
			}
		})
	}
}

// The TTL counts cells: one between containers of the same, two across.
func TestEachCellIsAHop(t *testing.T) {
	pairs(t, func(t *testing.T, w *world, client, server *container) {
		want := uint8(63)
		if client.cell != server.cell {
			want = 62
			w.tap = func(d *wire) bool {
				at := 8
				if d.b[headroom]>>4 == 6 {
					at = 7
				}
				if ttl := d.b[headroom+at]; ttl != 63 {
					t.Errorf("TTL on the wire %d, want 63", ttl)
				}
				return true
			}
		}
		w.allow("web db udp 53")
		client.send(packettest.UDP(client.at(4000), server.at(53), nil))
		if got := server.expect(fmt.Sprintf("udp %s>%s", client.at(4000), server.at(53))); got[0].h.TTL != want {
			t.Errorf("TTL %d, want %d", got[0].h.TTL, want)
		}
		client.cell.path.Tick(1)
		dying := packettest.UDP(client.at(4000), server.at(53), nil)
		exceeded := fmt.Sprintf("icmp %s>%s 11/0", client.cell.subnet.Addr(), client.addr)
		dying[8] = 1
		if client.addr.Is6() {
			dying = packettest.UDP(client.at(4000), server.at(53), nil)
			dying[7] = 1
			exceeded = fmt.Sprintf("icmp %s>%s 3/0", fib.Twin(client.cell.subnet.Addr()), client.addr)
		}
		client.send(packettest.Fix(dying))
		server.expect()
		client.expect(exceeded)
	})
}

func TestSuperPacketStaysWholeHereAndIsSplitOnceForThere(t *testing.T) {
	pairs(t, func(t *testing.T, w *world, client, server *container) {
		w.allow("web db tcp 80")
		connect(client, 4000, server, 80)
		payload := make([]byte, 60000)
		for i := range payload {
			payload[i] = byte(i * 7)
		}
		frames, lengths := 0, map[int]int{}
		w.tap = func(d *wire) bool { frames++; lengths[len(d.b)]++; return true }
		w.sent = 0
		p := packettest.TCP(client.at(4000), server.at(80), fACK|fPSH, 101, 501, payload)
		v := packet.Virtio{Flags: packet.VirtioNeedsChecksum, GSOType: packet.GSOTCPv4, HdrLen: 40, GSOSize: 1400, CsumStart: 20, CsumOffset: 16}
		if client.addr.Is6() {
			v.GSOType, v.CsumStart = packet.GSOTCPv6, 40
		}
		client.sendVirtio(v, p)
		var stream []byte
		got := server.got()
		for _, r := range got {
			stream = append(stream, r.payload()...)
		}
		if string(stream) != string(payload) {
			t.Fatalf("%d bytes arrived, not the %d that were sent", len(stream), len(payload))
		}
		if client.cell == server.cell {
			if len(got) != 1 || frames != 0 {
				t.Errorf("%d writes and %d frames for a packet between neighbours", len(got), frames)
			}
			return
		}
		headers := 40
		if client.addr.Is6() {
			headers = 60
		}
		if frames != 43 || lengths[headroom+headers+1400] != 42 {
			t.Errorf("%d frames of lengths %v, want 43 equal ones but the last", frames, lengths)
		}
		if w.sent != 1 {
			t.Errorf("%d sends, want 1", w.sent)
		}
		// The test's network hands over 40 datagrams at most in a message.
		if len(got) > 2 {
			t.Errorf("%d writes at the far end, want the segments joined", len(got))
		}
	})
}

func TestSpoofedAndMisdirected(t *testing.T) {
	w := newWorld(t)
	a, b := w.cell(1), w.cell(2)
	k, neighbour, far := a.container("web", 2), a.container("web", 4), b.container("db", 3)
	w.allow("web db tcp 80")
	w.allow("web web tcp 80")
	gw := a.subnet.Addr().String()
	icmpFrom := func(code int) string { return fmt.Sprintf("icmp %s>%s 3/%d", gw, k.addr, code) }
	rst := func(to string) string { return fmt.Sprintf("tcp %s>%s RA", to, k.at(4000)) }
	syn := func(to string) []byte { return packettest.TCP(k.at(4000), addrPort(to), fSYN, 1, 0, nil) }
	udp := func(to string) []byte { return packettest.UDP(k.at(4000), addrPort(to), nil) }
	options := packettest.TCP(k.at(4000), far.at(80), fSYN, 1, 0, nil)
	options = packettest.IPv4{Src: k.addr, Dst: far.addr, Proto: 6, Options: []byte{131, 3, 4, 0}, Payload: options[20:]}.Bytes()
	for _, c := range []struct {
		name   string
		p      []byte
		reason Reason
		answer string
	}{
		{"another's source", packettest.TCP(neighbour.at(4000), far.at(80), fSYN, 1, 0, nil), SpoofedSource, ""},
		{"to itself", packettest.TCP(k.at(4000), k.at(80), fSYN, 1, 0, nil), SpoofedSource, ""},
		{"multicast", udp("224.0.0.251:5353"), Multicast, ""},
		{"limited broadcast", udp("255.255.255.255:67"), Multicast, ""},
		{"overlay broadcast", udp("10.255.255.255:67"), Multicast, ""},
		{"own cell, tcp", syn("10.255.1.0:4789"), CellAddress, rst("10.255.1.0:4789")},
		{"own cell, udp", udp("10.255.1.0:4789"), CellAddress, icmpFrom(3)},
		{"other cell", udp("10.255.2.0:4789"), CellAddress, icmpFrom(3)},
		{"nobody here", syn("10.255.1.77:80"), NoEndpoint, rst("10.255.1.77:80")},
		{"nobody there", udp("10.255.2.77:80"), NoEndpoint, icmpFrom(3)},
		{"nobody's lease", syn("10.255.9.1:80"), NoRoute, icmpFrom(0)},
		{"the world", syn("93.184.216.34:443"), OutsideOverlay, icmpFrom(13)},
		{"own underlay", udp("192.0.2.1:4789"), OutsideOverlay, icmpFrom(13)},
		{"peer's underlay", udp("192.0.2.2:4789"), OutsideOverlay, icmpFrom(13)},
		{"loopback", udp("127.0.0.1:9478"), OutsideOverlay, ""},
		{"resolver, tcp", syn("169.254.0.2:53"), ResolverPort, rst("169.254.0.2:53")},
		{"resolver, other port", udp("169.254.0.2:54"), ResolverPort, fmt.Sprintf("icmp 169.254.0.2>%s 3/3", k.addr)},
		{"echo", packettest.ICMP(k.addr, far.addr, 8, 0, 1, nil), ICMPDenied, icmpFrom(3)},
		{"echo to the cell", packettest.ICMP(k.addr, a.subnet.Addr(), 8, 0, 1, nil), CellAddress, icmpFrom(3)},
		{"redirect", packettest.ICMP(k.addr, far.addr, 5, 1, 0, make([]byte, 28)), ICMPDenied, ""},
		{"error about nothing", packettest.ICMP(k.addr, far.addr, 3, 3, 0, udp("10.255.2.3:80")), ICMPUnrelated, ""},
		{"GRE", packettest.IPv4{Src: k.addr, Dst: far.addr, Proto: 47, Payload: make([]byte, 20)}.Bytes(), NotAllowedProtocol, icmpFrom(3)},
		{"source route", options, SourceRoute, ""},
		{"IP version 5", append([]byte{0x55}, make([]byte, 39)...), NotIP, ""},
		{"short", []byte{0x45, 0}, BadPacket, ""},
		{"empty", nil, BadPacket, ""},
		{"RST without a flow", packettest.TCP(k.at(4000), far.at(81), fRST, 1, 0, nil), NoPolicy, ""},
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
			neighbour.expect()
			if n := a.path.FlowCount() + b.path.FlowCount(); n != 0 {
				t.Errorf("%d flows", n)
			}
		})
	}
}

func TestVirtioThatLies(t *testing.T) {
	w := newWorld(t)
	a, b := w.cell(1), w.cell(2)
	k, far := a.container("web", 2), b.container("db", 3)
	w.allow("web db tcp 80")
	connect(k, 4000, far, 80)
	big := packettest.TCP(k.at(4000), far.at(80), fACK, 101, 501, make([]byte, 60000))
	ok := packet.Virtio{Flags: packet.VirtioNeedsChecksum, GSOType: packet.GSOTCPv4, GSOSize: 1400, CsumStart: 20, CsumOffset: 16}
	for name, change := range map[string]func(*packet.Virtio){
		"60,000 frames":           func(v *packet.Virtio) { v.GSOSize = 1 },
		"no size":                 func(v *packet.Virtio) { v.GSOSize = 0 },
		"checksum outside":        func(v *packet.Virtio) { v.CsumStart = 65000 },
		"checksum in the payload": func(v *packet.Virtio) { v.CsumOffset = 900 },
		"another type":            func(v *packet.Virtio) { v.GSOType = 4 },
		"flags":                   func(v *packet.Virtio) { v.Flags = 0x80 },
	} {
		t.Run(name, func(t *testing.T) {
			v := ok
			change(&v)
			before := a.path.Stats()
			k.sendVirtio(v, big)
			a.dropped(before, BadVirtio)
			far.expect()
			k.expect()
		})
	}
	t.Run("no header", func(t *testing.T) {
		before := a.path.Stats()
		k.ep.w.read(3)
		a.dropped(before, BadVirtio)
	})
}

func TestResolver(t *testing.T) {
	w := newWorld(t)
	a := w.cell(1)
	k := a.container("web", 2)
	resolver := addrPort("169.254.0.2:53")
	k.send(packettest.UDP(k.at(4000), resolver, []byte("query")))
	k.expect()
	if len(a.queries) != 1 || a.queries[0] != "web "+k.at(4000).String()+" query" {
		t.Fatalf("queries %q", a.queries)
	}
	a.path.Reply(k.at(4000), resolver, []byte("answer"))
	if got := k.expect(fmt.Sprintf("udp %s>%s", resolver, k.at(4000))); got[0].payload() != "answer" {
		t.Errorf("payload %q", got[0].payload())
	}
	a.path.Reply(addrPort("10.255.1.99:1"), resolver, []byte("to nobody"))
	a.path.Reply(k.at(4000), resolver, make([]byte, 70000))
	k.expect()
}
