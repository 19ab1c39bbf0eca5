package datapath

import (
	"fmt"
	"testing"

	"tulle/overlay/fib"
	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
	"tulle/policy"
)

// resets checks that a container got nothing but resets of a connection, and
// that one of them has exactly the sequence number it expects.
func resets(t *testing.T, k *container, from, to string, seq uint32) {
	t.Helper()
	exact := false
	all := k.got()
	for _, r := range all {
		if want := fmt.Sprintf("tcp %s>%s RA", from, to); r.String() != want {
			t.Errorf("%s got %s, want %s", k.app, r, want)
		}
		exact = exact || r.h.Seq == seq
	}
	if !exact {
		t.Errorf("%s got %v, none with sequence number %d", k.app, all, seq)
	}
}

func TestRemovedPolicyCutsBothEnds(t *testing.T) {
	pairs(t, func(t *testing.T, w *world, client, server *container) {
		w.allow("web db tcp 80")
		w.allow("web db tcp 81")
		w.allow("web db udp 53")
		connect(client, 4000, server, 80)
		connect(client, 4001, server, 81)
		client.send(packettest.UDP(client.at(4002), server.at(53), nil))
		c, s := client.at(4000), server.at(80)
		server.send(packettest.TCP(s, c, fACK|fPSH, 501, 101, make([]byte, 1000)))
		client.send(packettest.TCP(c, s, fACK, 101, 1501, nil))
		client.got()
		server.got()

		if n := w.forbid("web db tcp 80"); n == 0 {
			t.Fatal("nothing was cut")
		}
		resets(t, client, s.String(), c.String(), 1501)
		resets(t, server, c.String(), s.String(), 101)

		// Afterwards neither gets a byte through, and the challenge of an end that
		// did not believe the reset is answered with an exact one.
		server.send(packettest.TCP(s, c, fACK|fPSH, 1501, 101, []byte("late")))
		client.expect()
		got := server.expect(fmt.Sprintf("tcp %s>%s R", c, s))
		if got[0].h.Seq != 101 {
			t.Errorf("reset at %d, want 101", got[0].h.Seq)
		}
		// The others live.
		client.send(packettest.TCP(client.at(4001), server.at(81), fACK|fPSH, 101, 501, []byte("x")))
		server.expect(fmt.Sprintf("tcp %s>%s PA", client.at(4001), server.at(81)))

		w.forbid("web db udp 53")
		got = client.expect(client.refused(client.cell))
		var q packet.Header
		if err := packet.ParseQuoted(got[0].p, &got[0].h, &q); err != nil || q.SrcPort != 4002 || q.DstPort != 53 {
			t.Errorf("the error quotes %v %+v", err, q)
		}
		got = server.got()
		if len(got) != 1 || got[0].String() != server.refused(server.cell) {
			t.Errorf("server of a cut UDP flow got %v", got)
		}
	})
}

// A cell that lags still lets the other's reset pass to its container.
func TestCutReachesTheFarEndByItsFlow(t *testing.T) {
	w := newWorld(t)
	a, b := w.cell(1), w.cell(2)
	client, server := a.container("web", 2), b.container("db", 3)
	w.allow("web db tcp 80")
	connect(client, 4000, server, 80)
	c, s := client.at(4000), server.at(80)
	if n := a.forbid("web db tcp 80"); n != 1 {
		t.Fatalf("cut %d flows, want 1", n)
	}
	resets(t, client, s.String(), c.String(), 501)
	resets(t, server, c.String(), s.String(), 101)

	// Without the flow the same reset would be a stranger's.
	for _, k := range []*container{client, server} {
		k.cell.path.flows.Each(func(f *flowFlow) { k.cell.path.flows.Delete(f.Ref(), nil) })
	}
	a.path.control.seal(a.fib.Load().Peer(b.name), policy.NoTag,
		packet.AppendResetTo(make([]byte, headroom), c.Addr(), s.Addr(), c.Port(), s.Port(), 101, 0))
	w.pump()
	server.expect()
}

// The other cell's reset arrives between the change of this cell's table and its
// Cut: it does not pass any more, and the container is told all the same.
func TestCutMeetsTheOtherCellsReset(t *testing.T) {
	w := newWorld(t)
	a, b := w.cell(1), w.cell(2)
	client, server := a.container("web", 2), b.container("db", 3)
	w.allow("web db tcp 80")
	connect(client, 4000, server, 80)
	c, s := client.at(4000), server.at(80)
	a.policies.Remove(rule("web db tcp 80"))
	if n := b.forbid("web db tcp 80"); n != 1 {
		t.Fatalf("cut %d flows, want 1", n)
	}
	w.pump()
	resets(t, client, s.String(), c.String(), 501)
	resets(t, server, c.String(), s.String(), 101)
	if n := a.forbid("web db tcp 80"); n != 0 || a.path.FlowCount() != 0 {
		t.Errorf("cut %d flows afterwards, %d are left", n, a.path.FlowCount())
	}
}

// So it is when a container goes, and the news of it is faster than the reset.
func TestGoneEndpointMeetsItsReset(t *testing.T) {
	w := newWorld(t)
	a, b := w.cell(1), w.cell(2)
	client, server := a.container("web", 2), b.container("db", 3)
	w.allow("web db tcp 80")
	connect(client, 4000, server, 80)
	a.fib.Update(func(bl *fib.Builder) { bl.DeleteRemote(server.addr) })
	b.path.Detach(server.addr)
	w.pump()
	resets(t, client, server.at(80).String(), client.at(4000).String(), 501)
	if n := a.path.CutEndpoint(server.addr, server.incarnation); n != 0 || a.path.FlowCount() != 0 {
		t.Errorf("cut %d flows afterwards, %d are left", n, a.path.FlowCount())
	}
}

// A reset is not for whoever has the address next.
func TestCutSparesTheNextContainer(t *testing.T) {
	w := newWorld(t)
	a, b := w.cell(1), w.cell(2)
	client, server := a.container("web", 2), b.container("db", 3)
	w.allow("web db tcp 80")
	connect(client, 4000, server, 80)
	a.fib.Update(func(bl *fib.Builder) {
		l := *a.fib.Load().Local(client.addr)
		l.Incarnation++
		client.ep.incarnation = l.Incarnation
		bl.PutLocal(l)
	})
	if n := a.forbid("web db tcp 80"); n != 1 {
		t.Errorf("cut %d flows, want 1", n)
	}
	client.expect()
}

// In the middle of a lossy download the numbers that passed here and those the
// receiver has differ; one of the resets fits.
func TestCutWithALossOnTheWay(t *testing.T) {
	w := newWorld(t)
	a, b := w.cell(1), w.cell(2)
	client, server := a.container("web", 2), b.container("db", 3)
	w.allow("web db tcp 80")
	connect(client, 4000, server, 80)
	c, s := client.at(4000), server.at(80)
	// The segment at 501 is lost, the one at 1501 arrives.
	w.tap = func(*wire) bool { return false }
	server.send(packettest.TCP(s, c, fACK, 501, 101, make([]byte, 1000)))
	w.tap = nil
	server.send(packettest.TCP(s, c, fACK, 1501, 101, make([]byte, 1000)))
	client.got()
	w.forbid("web db tcp 80")
	resets(t, client, s.String(), c.String(), 501)
}

func TestDetachEndsFlows(t *testing.T) {
	pairs(t, func(t *testing.T, w *world, client, server *container) {
		w.allow("web db tcp 80")
		connect(client, 4000, server, 80)
		server.cell.path.Detach(fib.Name(server.addr))
		server.cell.path.Detach(fib.Name(server.addr))
		w.pump()
		resets(t, client, server.at(80).String(), client.at(4000).String(), 501)
		select {
		case <-server.end.Closed():
		default:
			t.Error("the device is still open")
		}
		if n := server.cell.path.FlowCount(); n != 0 {
			t.Errorf("%d flows of a detached container", n)
		}
		client.send(packettest.TCP(client.at(4001), server.at(80), fSYN, 1, 0, nil))
		client.expect(fmt.Sprintf("tcp %s>%s RA", server.at(80), client.at(4001)))
		// What it still had to send goes nowhere.
		server.send(packettest.TCP(server.at(80), client.at(4000), fACK, 501, 101, nil))
		client.expect()
	})
}

// A flow never serves the container that got its end's address next.
func TestNewIncarnationVoidsFlows(t *testing.T) {
	w := newWorld(t)
	a, b := w.cell(1), w.cell(2)
	client, server := a.container("web", 2), b.container("db", 3)
	w.allow("web db udp 53")
	client.send(packettest.UDP(client.at(4000), server.at(53), nil))
	server.got()
	// The same app, the same address, another container: its answer is no reply.
	b.path.Detach(server.addr)
	next := b.containerAt("db", 3, 2<<32|1)
	if n := a.path.CutEndpoint(server.addr, server.incarnation); n != 1 {
		t.Errorf("cut %d flows, want 1", n)
	}
	client.got()
	next.send(packettest.UDP(next.at(53), client.at(4000), []byte("reply?")))
	client.expect()
	// Nor without the cut: the record names the incarnation.
	client.send(packettest.UDP(client.at(4000), next.at(53), nil))
	next.got()
	a.fib.Update(func(bl *fib.Builder) {
		bl.PutRemote(fib.Remote{Addr: next.addr, App: "db", Tag: tags["db"], Incarnation: 3<<32 | 1})
	})
	next.send(packettest.UDP(next.at(53), client.at(4000), []byte("reply?")))
	// No reply, but the news that there will be none.
	client.expect(fmt.Sprintf("icmp %s>%s 3/3", a.subnet.Addr(), client.addr))
}

func TestPeerGenerationVoidsFlows(t *testing.T) {
	w := newWorld(t)
	a, b := w.cell(1), w.cell(2)
	client, server := a.container("web", 2), b.container("db", 3)
	w.allow("web db tcp 80")
	connect(client, 4000, server, 80)
	old := a.fib.Load().Peer(b.name).ID
	a.fib.Update(func(bl *fib.Builder) {
		bl.PutPeer(fib.Peer{Name: b.name, Underlay: b.underlay, Subnet: b.subnet, Generation: 2})
	})
	server.send(packettest.TCP(server.at(80), client.at(4000), fACK, 501, 101, []byte("x")))
	resets(t, client, server.at(80).String(), client.at(4000).String(), 501)
	server.got()
	connectAgain := packettest.UDP(client.at(1), server.at(1), nil)
	client.send(connectAgain)
	client.got()
	if n := a.path.CutPeer(old); n != 0 {
		t.Errorf("%d flows were left after a packet found them void", n)
	}
}

// What Cut was not told of does not pass either, and both ends learn it.
func TestGenerationIsTheBackstop(t *testing.T) {
	pairs(t, func(t *testing.T, w *world, client, server *container) {
		w.allow("web db tcp 80")
		w.allow("db other tcp 1")
		connect(client, 4000, server, 80)
		for _, c := range w.cells {
			c.policies.Remove(rule("db other tcp 1"))
		}
		client.send(packettest.TCP(client.at(4000), server.at(80), fACK, 101, 501, []byte("x")))
		server.expect(fmt.Sprintf("tcp %s>%s A", client.at(4000), server.at(80)))
		client.cell.policies.Remove(rule("web db tcp 80"))
		client.send(packettest.TCP(client.at(4000), server.at(80), fACK, 102, 501, []byte("x")))
		resets(t, server, client.at(4000).String(), server.at(80).String(), 102)
		client.expect(fmt.Sprintf("tcp %s>%s RA", server.at(80), client.at(4000)),
			fmt.Sprintf("tcp %s>%s R", server.at(80), client.at(4000))) // the cut, and the answer
	})
}

// A restarted daemon has no flows; under policy its connections go on, also when
// only the server sends.
func TestConnectionsArePickedUp(t *testing.T) {
	for _, first := range []string{"server", "client"} {
		pairs(t, func(t *testing.T, w *world, client, server *container) {
			forget := func() {
				for _, c := range w.cells {
					c.path.flows.Each(func(f *flowFlow) { c.path.flows.Delete(f.Ref(), nil) })
				}
			}
			w.allow("web db tcp 80")
			connect(client, 4000, server, 80)
			c, s := client.at(4000), server.at(80)
			forget()
			if first == "server" {
				server.send(packettest.TCP(s, c, fACK, 501, 101, []byte("data")))
				client.expect(fmt.Sprintf("tcp %s>%s A", s, c))
			}
			client.send(packettest.TCP(c, s, fACK, 101, 505, nil))
			server.expect(fmt.Sprintf("tcp %s>%s A", c, s))
			server.send(packettest.TCP(s, c, fACK, 505, 101, []byte("data")))
			client.expect(fmt.Sprintf("tcp %s>%s A", s, c))
			// They are flows like any: the client is the one that opened.
			client.cell.path.flows.Each(func(f *flowFlow) {
				if f.Src != client.addr || f.DstPort != 80 {
					t.Errorf("recorded as opened by %s to port %d", f.Src, f.DstPort)
				}
			})
			w.forbid("web db tcp 80")
			resets(t, client, s.String(), c.String(), 509)
			resets(t, server, c.String(), s.String(), 101)

			// A SYN+ACK is nobody's reply, nor is a segment without a policy.
			w.allow("web db tcp 80")
			forget()
			server.send(packettest.TCP(s, c, fSYN|fACK, 500, 101, nil))
			client.expect()
			server.expect(fmt.Sprintf("tcp %s>%s R", c, s))
			server.send(packettest.TCP(server.at(81), c, fACK, 500, 101, nil))
			client.expect()
			server.expect(fmt.Sprintf("tcp %s>%s R", c, server.at(81)))
		})
	}
}

// Ports used again: over a connection that ended, a SYN is a new flow, in either
// direction under its own policy.
func TestPortsUsedAgain(t *testing.T) {
	pairs(t, func(t *testing.T, w *world, client, server *container) {
		w.allow("web db tcp 80")
		connect(client, 4000, server, 80)
		c, s := client.at(4000), server.at(80)
		client.send(packettest.TCP(c, s, fFIN|fACK, 101, 501, nil))
		server.send(packettest.TCP(s, c, fFIN|fACK, 501, 102, nil))
		client.send(packettest.TCP(c, s, fACK, 102, 502, nil))
		client.got()
		server.got()
		server.send(packettest.TCP(s, c, fSYN, 9, 0, nil))
		client.expect()
		server.expect(fmt.Sprintf("tcp %s>%s RA", c, s))
		connect(client, 4000, server, 80)
		server.send(packettest.TCP(s, c, fSYN, 9, 0, nil))
		client.expect()
		server.expect(fmt.Sprintf("tcp %s>%s RA", c, s))
	})
}

func TestFlowsExpire(t *testing.T) {
	w := newWorld(t)
	a := w.cell(1)
	client, server := a.container("web", 2), a.container("db", 3)
	w.allow("web db udp 53")
	reply := func() int {
		server.send(packettest.UDP(server.at(53), client.at(4000), nil))
		return len(client.got())
	}
	client.send(packettest.UDP(client.at(4000), server.at(53), nil))
	a.path.Tick(30)
	if reply() != 1 {
		t.Error("a reply after 30 s was refused")
	}
	a.path.Tick(30 + 121)
	if reply() != 0 {
		t.Error("a reply passed after 121 s of silence")
	}
}
