package datapath

import (
	"fmt"
	"net/netip"
	"testing"

	"tulle/overlay/fib"
	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
	"tulle/overlay/udp"
	"tulle/overlay/vxlan"
	"tulle/policy"
)

// sealed is the frame of p from one cell to another.
func sealed(to *testCell, tag policy.Tag, p []byte, change ...func(*vxlan.Frame)) []byte {
	f := vxlan.Frame{GroupID: uint16(tag), VNI: 1, DstMAC: vxlan.MACFor(to.subnet.Addr()), SrcMAC: vxlan.MAC{2}, IPv6: len(p) > 0 && p[0]>>4 == 6}
	for _, c := range change {
		c(&f)
	}
	b := make([]byte, vxlan.Overhead, vxlan.Overhead+len(p))
	f.Encode(b)
	return append(b, p...)
}

func TestFramesThatAreNotToBeBelieved(t *testing.T) {
	w := newWorld(t)
	a, b := w.cell(1), w.cell(2)
	c3 := w.cell(3)
	client, server, third := a.container("web", 2), b.container("db", 3), c3.container("web", 4)
	w.allow("web db tcp 80")
	syn := packettest.TCP(client.at(4000), server.at(80), fSYN, 1, 0, nil)
	udpFrom := func(src string) []byte { return packettest.UDP(addrPort(src), server.at(80), nil) }
	good := sealed(b, tags["web"], syn)
	flagless := append([]byte(nil), good...)
	flagless[0] &^= 0x08
	arp := append([]byte(nil), good...)
	arp[20], arp[21] = 0x08, 0x06
	badSum := append([]byte(nil), good...)
	badSum[headroom+10]++
	long := append([]byte(nil), good...)
	long[headroom+3] = 0xff
	packettest.Fix(long[headroom:])

	for _, c := range []struct {
		name   string
		from   netip.AddrPort
		frame  []byte
		reason Reason
	}{
		{"nothing", a.underlay, []byte{8}, BadFrame},
		{"headers alone", a.underlay, good[:headroom], BadPacket},
		{"cut off", a.underlay, good[:len(good)-10], BadPacket},
		{"no VNI flag", a.underlay, flagless, BadFrame},
		{"ARP", a.underlay, arp, BadFrame},
		{"wrong checksum", a.underlay, badSum, BadPacket},
		{"wrong length", a.underlay, long, BadPacket},
		{"wrong VNI", a.underlay, sealed(b, 1, syn, func(f *vxlan.Frame) { f.VNI = 2 }), WrongVNI},
		{"wrong MAC", a.underlay, sealed(a, 1, syn), WrongMAC},
		{"unknown peer", addrPort("198.51.100.1:4789"), good, UnknownPeer},
		{"peer's address, another port", netip.AddrPortFrom(a.underlay.Addr(), 999), good, UnknownPeer},
		{"another peer's container", c3.underlay, good, OutsideLease},
		{"our own container", a.underlay, sealed(b, 1, udpFrom("10.255.2.9:1")), OutsideLease},
		{"outside the overlay", a.underlay, sealed(b, 1, udpFrom("8.8.8.8:53")), OutsideLease},
		{"the peer itself", a.underlay, sealed(b, 1, udpFrom("10.255.1.0:53")), OutsideLease},
		{"to another cell", a.underlay, sealed(b, 1, packettest.TCP(client.at(1), third.at(80), fSYN, 1, 0, nil)), NotOurs},
		{"to the world", a.underlay, sealed(b, 1, packettest.UDP(client.at(1), addrPort("8.8.8.8:53"), nil)), NotOurs},
		{"to us, the cell", a.underlay, sealed(b, 1, packettest.UDP(client.at(1), addrPort("10.255.2.0:4789"), nil)), CellAddress},
		{"to nobody", a.underlay, sealed(b, 1, packettest.TCP(client.at(1), addrPort("10.255.2.99:80"), fSYN, 1, 0, nil)), NoEndpoint},
		{"another app's tag", a.underlay, sealed(b, tags["other"], syn), WrongTag},
		{"no tag", a.underlay, sealed(b, 0, syn), NoIdentity},
		{"unknown source", a.underlay, sealed(b, tags["web"], udpFrom("10.255.1.50:80")), NoIdentity},
		{"echo", a.underlay, sealed(b, tags["web"], packettest.ICMP(client.addr, server.addr, 8, 0, 1, nil)), ICMPDenied},
		{"SCTP", a.underlay, sealed(b, tags["web"], packettest.IPv4{Src: client.addr, Dst: server.addr, Proto: 132, Payload: make([]byte, 20)}.Bytes()), NotAllowedProtocol},
		{"source route", a.underlay, sealed(b, tags["web"], packettest.IPv4{Src: client.addr, Dst: server.addr, Proto: 6, Options: []byte{1, 137, 3, 4}, Payload: syn[20:]}.Bytes()), SourceRoute},
		{"broken options", a.underlay, sealed(b, tags["web"], packettest.IPv4{Src: client.addr, Dst: server.addr, Proto: 6, Options: []byte{1, 1, 7, 9}, Payload: syn[20:]}.Bytes()), BadPacket},
		{"another port", a.underlay, sealed(b, tags["web"], packettest.TCP(client.at(4000), server.at(81), fSYN, 1, 0, nil)), NoPolicy},
	} {
		t.Run(c.name, func(t *testing.T) {
			b.path.Tick(b.path.flows.Now() + 1)
			before := b.path.Stats()
			answered := 0
			w.tap = func(d *wire) bool {
				answered++
				if d.b[0] != 0x08 || d.b[2] != 0 || d.b[3] != 0 {
					t.Errorf("the answer carries a tag: % x", d.b[:8])
				}
				return true
			}
			b.frame(c.from, c.frame)
			b.dropped(before, c.reason)
			server.expect()
			if want := replies[c.reason] != silence; want != (answered == 1) {
				t.Errorf("%d answers to the peer, want one: %t", answered, want)
			}
			client.expect() // nothing of the client's was under way
			if n := b.path.FlowCount(); n != 0 {
				t.Errorf("%d flows", n)
			}
		})
	}
	w.tap = nil
	b.frame(a.underlay, good)
	server.expect(fmt.Sprintf("tcp %s>%s S", client.at(4000), server.at(80)))
}

// A WireGuard peer's frames do not pass in clear, nor are any sent so.
func TestModeIsWhatTheControlPlaneGave(t *testing.T) {
	w := newWorld(t)
	a, b := w.cell(1), w.cell(2)
	client, server := a.container("web", 2), b.container("db", 3)
	w.allow("web db tcp 80")
	for _, c := range [][2]*testCell{{a, b}, {b, a}} {
		c[0].fib.Update(func(bl *fib.Builder) {
			bl.PutPeer(fib.Peer{Name: c[1].name, Mode: fib.WireGuard, Underlay: c[1].underlay, Subnet: c[1].subnet, Generation: 1})
		})
	}
	before := a.path.Stats()
	client.send(packettest.TCP(client.at(4000), server.at(80), fSYN, 1, 0, nil))
	a.dropped(before, WrongMode)
	if w.sent != 0 {
		t.Error("a frame went out in clear")
	}
	before = b.path.Stats()
	b.frame(a.underlay, sealed(b, tags["web"], packettest.TCP(client.at(4000), server.at(80), fSYN, 1, 0, nil)))
	b.dropped(before, WrongMode)
	server.expect()
}

func TestBeforeStartNothingIsJudged(t *testing.T) {
	w := newWorld(t)
	a, b := w.cell(1), w.cell(2)
	client, server := a.container("web", 2), b.container("db", 3)
	w.allow("web db tcp 80")
	b.path.started.Store(false)
	before := b.path.Stats()
	client.send(packettest.TCP(client.at(4000), server.at(80), fSYN, 1, 0, nil))
	b.dropped(before, NotStarted)
	server.expect()
	client.expect() // not even refused
	server.end.Send([]byte("stays in the device"))
	if n := server.end.Unread(); n != 1 {
		t.Errorf("%d packets unread, want 1", n)
	}
}

// ICMP errors pass for flows alone, with a quote that fits, from the flow's other
// end or its cell.
func TestICMPErrorsOfFlows(t *testing.T) {
	w := newWorld(t)
	a, b := w.cell(1), w.cell(2)
	c3 := w.cell(3)
	client, server := a.container("web", 2), b.container("db", 3)
	neighbour, third := b.container("db", 4), c3.container("db", 5)
	w.allow("web db tcp 80")
	w.allow("web db udp 53")
	connect(client, 4000, server, 80)
	sent := packettest.TCP(client.at(4000), server.at(80), fACK|fPSH, 101, 501, []byte("data"))
	client.send(sent)
	client.send(packettest.UDP(client.at(4001), server.at(53), nil))
	server.got()
	quote := func(p []byte) []byte { return p[:28] }
	tooBig := func(src netip.Addr, q []byte) []byte {
		return packettest.ICMP(src, client.addr, 3, 4, 1300, q)
	}
	udpSent := packettest.UDP(client.at(4001), server.at(53), nil)
	stale := packettest.TCP(client.at(4000), server.at(80), fACK, 101+1<<20, 501, nil)
	acked := packettest.TCP(client.at(4000), server.at(80), fACK, 50, 501, nil)
	otherPort := packettest.TCP(client.at(4000), server.at(81), fACK, 101, 501, nil)
	notOurs := packettest.TCP(server.at(80), client.at(4000), fACK, 501, 101, nil)

	for _, c := range []struct {
		name string
		from *testCell
		p    []byte
		pass bool
	}{
		{"from the other end", b, tooBig(server.addr, quote(sent)), true},
		{"from its cell", b, tooBig(b.subnet.Addr(), quote(sent)), true},
		{"about UDP", b, packettest.ICMP(b.subnet.Addr(), client.addr, 3, 3, 0, quote(udpSent)), true},
		{"from its neighbour", b, tooBig(neighbour.addr, quote(sent)), false},
		{"from another cell", c3, tooBig(c3.subnet.Addr(), quote(sent)), false},
		{"from another cell's container", c3, tooBig(third.addr, quote(sent)), false},
		{"beyond the window", b, tooBig(server.addr, quote(stale)), false},
		{"acknowledged long ago", b, tooBig(server.addr, quote(acked)), false},
		{"no such flow", b, tooBig(server.addr, quote(otherPort)), false},
		{"quotes what the receiver did not send", b, tooBig(server.addr, quote(notOurs)), false},
		{"quote too short", b, tooBig(server.addr, sent[:24]), false},
		{"echo from the cell", b, packettest.ICMP(b.subnet.Addr(), client.addr, 8, 0, 1, nil), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			a.frame(c.from.underlay, sealed(a, 0, c.p))
			if got := len(client.got()); (got == 1) != c.pass {
				t.Errorf("%d packets arrived, want to pass: %t", got, c.pass)
			}
		})
	}
	t.Run("sent by the container itself", func(t *testing.T) {
		server.send(tooBig(server.addr, quote(sent)))
		if len(client.got()) != 1 {
			t.Error("the server's error did not arrive")
		}
		server.send(tooBig(server.addr, quote(otherPort)))
		neighbour.send(tooBig(neighbour.addr, quote(sent)))
		if got := client.got(); len(got) != 0 {
			t.Errorf("arrived: %v", got)
		}
	})
}

func TestSilkPeer(t *testing.T) {
	w := newWorld(t)
	a := w.cell(1)
	k := a.container("web", 2)
	silk := a.silk(7)
	remote := addrPort("10.255.7.5:8080")
	var out []wire
	w.tap = func(d *wire) bool { out = append(out, *d); return true }
	hashed := netip.AddrPortFrom(silk.Underlay.Addr(), 51515) // a kernel's source port

	// Out: by what the app may reach at all.
	k.send(packettest.TCP(k.at(4000), remote, fSYN, 100, 0, nil))
	k.expect(fmt.Sprintf("tcp %s>%s RA", remote, k.at(4000)))
	a.reach.Add(rule("web * tcp 8080"))
	k.send(packettest.TCP(k.at(4000), remote, fSYN, 100, 0, nil))
	if len(out) != 1 || out[0].b[0] != 0x88 || out[0].b[3] != 1 || out[0].to != silk.Underlay {
		t.Fatalf("sent %v", out)
	}
	// Back: untagged, by the flow; untagged and new: refused.
	a.frame(hashed, sealed(a, 0, packettest.TCP(remote, k.at(4000), fSYN|fACK, 500, 101, nil)))
	k.expect(fmt.Sprintf("tcp %s>%s SA", remote, k.at(4000)))
	out = nil
	a.frame(hashed, sealed(a, 0, packettest.TCP(remote, k.at(80), fSYN, 1, 0, nil)))
	k.expect()
	if len(out) != 1 || out[0].b[0] != 0x08 {
		t.Errorf("the refusal was %v", out)
	}
	// In: by the tag on the wire, as it is.
	a.policies.Add(rule("db web tcp 80"))
	a.frame(hashed, sealed(a, tags["db"], packettest.TCP(remote, k.at(80), fSYN, 1, 0, nil)))
	k.expect(fmt.Sprintf("tcp %s>%s S", remote, k.at(80)))
	k.send(packettest.TCP(k.at(80), remote, fSYN|fACK, 7, 2, nil))
	k.expect()
	a.frame(hashed, sealed(a, tags["other"], packettest.TCP(addrPort("10.255.7.6:1"), k.at(80), fSYN, 1, 0, nil)))
	k.expect()
	// A flow is its app's: under another tag the same addresses are judged anew.
	a.frame(hashed, sealed(a, tags["other"], packettest.TCP(remote, k.at(80), fACK, 2, 8, nil)))
	resets(t, k, remote.String(), k.at(80).String(), 2)
	// Its own address sends nothing, and is not reached.
	a.frame(hashed, sealed(a, tags["db"], packettest.TCP(addrPort("10.255.7.0:1"), k.at(80), fSYN, 1, 0, nil)))
	k.expect()
	k.send(packettest.TCP(k.at(4000), addrPort("10.255.7.0:8080"), fSYN, 1, 0, nil))
	k.expect(fmt.Sprintf("tcp 10.255.7.0:8080>%s RA", k.at(4000)))
	// The removal cuts the weak flow too.
	a.reach.Remove(rule("web * tcp 8080"))
	out = nil
	if n := a.path.Cut([]Pair{{tags["web"], tags["db"]}}); n != 1 {
		t.Errorf("cut %d flows, want 1", n)
	}
	w.pump()
	resets(t, k, remote.String(), k.at(4000).String(), 501)
	if len(out) == 0 {
		t.Error("the far end was not told")
	}
	// After a restart the app's replies are picked up.
	a.path.flows.Each(func(f *flowFlow) { a.path.flows.Delete(f.Ref(), nil) })
	data := packettest.TCP(k.at(80), remote, fACK, 8, 2, []byte("data"))
	k.send(data)
	k.expect(fmt.Sprintf("tcp %s>%s R", remote, k.at(80)))
	a.reach.Add(rule("* web tcp 80"))
	out = nil
	k.send(data)
	k.expect()
	if len(out) != 1 {
		t.Errorf("sent %d frames, want 1", len(out))
	}
}

// A restarted daemon has no flows; what a silk cell's container sends in a connection
// that an app here opened is untagged, and is picked up by what that app may reach.
func TestSilkServerIsPickedUp(t *testing.T) {
	w := newWorld(t)
	a := w.cell(1)
	k := a.container("web", 2)
	silk := a.silk(7)
	server, client := addrPort("10.255.7.5:8080"), k.at(4000)
	sent := 0
	w.tap = func(*wire) bool { sent++; return true }
	data := func(from netip.AddrPort, flags uint8) {
		a.frame(silk.Underlay, sealed(a, 0, packettest.TCP(from, client, flags, 501, 101, []byte("data"))))
	}
	data(server, fACK) // no policy
	k.expect()
	a.reach.Add(rule("* web tcp 4000")) // lets in who says its app, alone
	data(server, fACK)
	k.expect()
	a.reach.Add(rule("web * tcp 8080"))
	data(addrPort("10.255.7.5:8081"), fACK)
	data(server, fSYN|fACK)
	data(server, fSYN)
	k.expect()
	if sent != 5 {
		t.Errorf("%d of 5 refusals were sent", sent)
	}
	data(server, fACK)
	k.expect(fmt.Sprintf("tcp %s>%s A", server, client))
	k.send(packettest.TCP(client, server, fACK, 101, 505, nil))
	k.expect()
	if sent != 6 {
		t.Errorf("%d frames were sent, want the acknowledgement behind the refusals", sent)
	}
	a.path.flows.Each(func(f *flowFlow) {
		if f.Src != k.addr || f.DstPort != 8080 {
			t.Errorf("recorded as opened by %s to port %d", f.Src, f.DstPort)
		}
	})
	// It is a flow like any: it ends with its policy.
	a.reach.Remove(rule("web * tcp 8080"))
	if n := a.path.Cut([]Pair{{tags["web"], tags["db"]}}); n != 1 {
		t.Errorf("cut %d flows, want 1", n)
	}
	w.pump()
	resets(t, k, server.String(), client.String(), 505)
}

// While a lease changes hands its former holder may still be known. What it sends
// in the name of the new holder's containers is nobody's.
func TestFormerLeaseholderHasNoIdentity(t *testing.T) {
	w := newWorld(t)
	a, b := w.cell(1), w.cell(2)
	server := a.container("db", 3)
	w.allow("web db udp 53")
	next := fib.Peer{Name: "next", Underlay: addrPort("192.0.2.50:4789"), Subnet: b.subnet, Generation: 9}
	web := addrPort("10.255.2.7:1")
	a.fib.Update(func(bl *fib.Builder) {
		bl.PutPeer(next)
		bl.PutRemote(fib.Remote{Addr: web.Addr(), App: "web", Tag: tags["web"], Incarnation: 7})
	})
	frame := sealed(a, tags["web"], packettest.UDP(web, server.at(53), nil))
	before := a.path.Stats()
	a.frame(b.underlay, frame)
	a.dropped(before, NoIdentity)
	server.expect()
	a.frame(next.Underlay, frame)
	server.expect("udp 10.255.2.7:1>10.255.1.3:53")
}

// A silk cell that comes back under a new lease is another peer, whose packets
// belong to no flow of the former.
func TestSilkPeerGenerationVoidsFlows(t *testing.T) {
	w := newWorld(t)
	a := w.cell(1)
	k := a.container("web", 2)
	silk := *a.silk(7)
	a.reach.Add(rule("web * udp 53"))
	k.send(packettest.UDP(k.at(4000), addrPort("10.255.7.5:53"), nil))
	reply := sealed(a, 0, packettest.UDP(addrPort("10.255.7.5:53"), k.at(4000), []byte("r")))
	a.frame(silk.Underlay, reply)
	k.expect("udp 10.255.7.5:53>10.255.1.2:4000")
	silk.Generation++
	a.fib.Update(func(b *fib.Builder) { b.PutPeer(silk) })
	a.frame(silk.Underlay, reply)
	k.expect(fmt.Sprintf("icmp %s>%s 3/3", a.subnet.Addr(), k.addr)) // no reply, but the news that there will be none
}

// An ICMP error for a container that is gone does not reach the next at its address.
func TestICMPErrorsNeedTheIncarnation(t *testing.T) {
	w := newWorld(t)
	a, b := w.cell(1), w.cell(2)
	client, server := a.container("web", 2), b.container("db", 3)
	w.allow("web db udp 53")
	sent := packettest.UDP(client.at(4000), server.at(53), nil)
	client.send(sent)
	e := sealed(a, 0, packettest.ICMP(b.subnet.Addr(), client.addr, 3, 3, 0, sent))
	a.frame(b.underlay, e)
	client.expect(fmt.Sprintf("icmp %s>%s 3/3", b.subnet.Addr(), client.addr))
	a.fib.Update(func(bl *fib.Builder) {
		l := *a.fib.Load().Local(client.addr)
		l.Incarnation++
		client.ep.incarnation = l.Incarnation
		bl.PutLocal(l)
	})
	a.frame(b.underlay, e)
	client.expect()
}

// Nor one about a flow whose policy has just gone.
func TestICMPErrorsNeedThePolicy(t *testing.T) {
	w := newWorld(t)
	a, b := w.cell(1), w.cell(2)
	client, server := a.container("web", 2), b.container("db", 3)
	w.allow("web db udp 53")
	sent := packettest.UDP(client.at(4000), server.at(53), nil)
	client.send(sent)
	a.policies.Remove(rule("web db udp 53"))
	a.frame(b.underlay, sealed(a, 0, packettest.ICMP(b.subnet.Addr(), client.addr, 3, 3, 0, sent)))
	client.expect()
}

// Silk's routers lease one address, which is theirs and no cell's.
func TestLeaseOfOneAddress(t *testing.T) {
	w := newWorld(t)
	a := w.cell(1)
	k := a.container("web", 2)
	underlay := addrPort("192.0.2.200:4789")
	a.fib.Update(func(b *fib.Builder) {
		b.PutPeer(fib.Peer{Name: "router", Kind: fib.Silk, Underlay: underlay, Subnet: netip.MustParsePrefix("10.255.0.9/32"), Generation: 1})
	})
	a.policies.Add(rule("other web tcp 80"))
	a.frame(underlay, sealed(a, tags["other"], packettest.TCP(addrPort("10.255.0.9:1"), k.at(80), fSYN, 1, 0, nil)))
	k.expect("tcp 10.255.0.9:1>10.255.1.2:80 S")
	k.send(packettest.TCP(k.at(80), addrPort("10.255.0.9:1"), fSYN|fACK, 1, 2, nil))
	k.expect()
}

func TestAnswersAreLimited(t *testing.T) {
	w := newWorld(t)
	a := w.cell(1, func(o *Options) { o.Limits.Answers = 3 })
	k, neighbour := a.container("web", 2), a.container("web", 4)
	count := func(k *container) int {
		for range 10 {
			k.send(packettest.UDP(k.at(1), addrPort("10.255.1.9:1"), nil))
		}
		return len(k.got())
	}
	if n := count(k); n != 3 {
		t.Errorf("%d answers, want 3", n)
	}
	if n := count(neighbour); n != 3 {
		t.Errorf("a neighbour got %d answers, want 3", n)
	}
	a.path.Tick(1)
	if n := count(k); n != 3 {
		t.Errorf("%d answers after a tick, want 3", n)
	}
	if s := a.path.Stats().Egress; s.Answers != 9 || s.AnswersLimited != 21 {
		t.Errorf("counted %d answers and %d held back", s.Answers, s.AnswersLimited)
	}
}

// Where a container has as many flows as it may, or the cell has, a new one is
// refused, counted and answered; those there are live on, both ways.
func TestFlowLimits(t *testing.T) {
	perEndpoint := func(o *Options) { o.Limits.Flow.PerEndpoint = 5 }
	inAll := func(o *Options) { o.Limits.Flow.Flows = 64 * 2 } // two a shard
	for name, c := range map[string]struct {
		source, destination func(*Options)
		reason              Reason
	}{
		"a container, as the source":      {source: perEndpoint, reason: EndpointFlowsFull},
		"a container, as the destination": {destination: perEndpoint, reason: EndpointFlowsFull},
		"in all, at the source":           {source: inAll, reason: FlowsFull},
		"in all, at the destination":      {destination: inAll, reason: FlowsFull},
	} {
		t.Run(name, func(t *testing.T) {
			with := func(change func(*Options)) func(*Options) {
				return func(o *Options) {
					if o.Limits.Answers = 1000; change != nil {
						change(o)
					}
				}
			}
			w := newWorld(t)
			a, b := w.cell(1, with(c.source)), w.cell(2, with(c.destination))
			client, server := a.container("web", 2), b.container("db", 3)
			neighbours := []*container{a.container("web", 4), b.container("db", 5)}
			w.allow("web db udp 1-200")
			full := a
			if c.destination != nil {
				full = b
			}
			before := full.path.Stats()
			var there, refused []uint16
			for port := uint16(1); port <= 200; port++ {
				client.send(packettest.UDP(client.at(9), server.at(port), nil))
				if len(server.got()) == 1 {
					there = append(there, port)
				} else {
					refused = append(refused, port)
				}
			}
			reasons := make([]Reason, len(refused))
			for i := range reasons {
				reasons[i] = c.reason
			}
			full.dropped(before, reasons...)
			if n := full.path.flows.Len(); n != len(there) || c.reason == EndpointFlowsFull && n != 5 || n > 128 || len(refused) == 0 {
				t.Errorf("%d flows in the table, %d datagrams arrived, %d were refused", n, len(there), len(refused))
			}
			if n := len(client.got()); n != len(refused) {
				t.Errorf("%d of %d refusals were answered", n, len(refused))
			}
			for _, port := range there {
				client.send(packettest.UDP(client.at(9), server.at(port), []byte("more")))
				server.expect(fmt.Sprintf("udp %s>%s", client.at(9), server.at(port)))
				server.send(packettest.UDP(server.at(port), client.at(9), []byte("answer")))
				client.expect(fmt.Sprintf("udp %s>%s", server.at(port), client.at(9)))
			}
			if c.reason == EndpointFlowsFull { // is that container's matter alone
				neighbours[0].send(packettest.UDP(neighbours[0].at(9), neighbours[1].at(1), nil))
				neighbours[1].expect(fmt.Sprintf("udp %s>%s", neighbours[0].at(9), neighbours[1].at(1)))
			}
			// What expires makes room.
			for now := uint32(121); now < 140; now++ {
				for _, cell := range w.cells {
					cell.path.Tick(now)
				}
			}
			client.send(packettest.UDP(client.at(9), server.at(refused[0]), nil))
			server.expect(fmt.Sprintf("udp %s>%s", client.at(9), server.at(refused[0])))
		})
	}
}

func TestMTU(t *testing.T) {
	w := newWorld(t)
	a, b := w.cell(1, func(o *Options) { o.MTU = 1000 }), w.cell(2)
	client, server := a.container("web", 2), b.container("db", 3)
	w.allow("web db tcp 80")
	w.allow("web db udp 53")
	connect(client, 4000, server, 80)
	client.send(packettest.UDP(client.at(1), server.at(53), make([]byte, 1100)))
	got := client.expect(fmt.Sprintf("icmp %s>%s 3/4", a.subnet.Addr(), client.addr))
	if mtu := int(got[0].p[26])<<8 | int(got[0].p[27]); mtu != 1000 {
		t.Errorf("names MTU %d", mtu)
	}
	longest := 0
	w.tap = func(d *wire) bool { longest = max(longest, len(d.b)); return true }
	client.sendVirtio(
		packet.Virtio{Flags: packet.VirtioNeedsChecksum, GSOType: packet.GSOTCPv4, GSOSize: 1400, CsumStart: 20, CsumOffset: 16},
		packettest.TCP(client.at(4000), server.at(80), fACK, 101, 501, make([]byte, 8000)))
	if longest != headroom+1000 {
		t.Errorf("longest frame %d, want %d", longest, headroom+1000)
	}
	n := 0
	for _, r := range server.got() {
		n += len(r.payload())
	}
	if n != 8000 {
		t.Errorf("%d bytes arrived", n)
	}
}

// Single datagrams are taken many at a time, trains of them few.
func TestBatchFollowsWhatComes(t *testing.T) {
	messages := func(n, length, segment int) []udp.Message {
		b := make([]udp.Message, n)
		for i := range b {
			b[i].N, b[i].Segment = length, segment
		}
		return b
	}
	ask := batchLen
	for _, c := range []struct {
		name string
		got  []udp.Message
		want int
	}{
		{"a train", messages(1, 64000, 1472), batchLen},
		{"a few single ones", messages(3, 1472, 1472), batchLen},
		{"as many as asked for", messages(batchLen, 1472, 1472), singleLen},
		{"many", messages(singleLen, 1472, 1472), singleLen},
		{"the last few", messages(1, 100, 100), singleLen},
		{"a train among them", append(messages(9, 1472, 1472), messages(1, 2944, 1472)...), batchLen},
	} {
		if ask = askAfter(c.got, ask); ask != c.want {
			t.Errorf("behind %s: %d, want %d", c.name, ask, c.want)
		}
	}
}
