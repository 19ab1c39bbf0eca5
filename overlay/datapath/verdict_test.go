package datapath

import (
	"testing"

	"tulle/overlay/fib"
	"tulle/overlay/flow"
	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
)

// Each thing that a flow's hit depends on, one at a time.
func TestWhatAHitDependsOn(t *testing.T) {
	w := newWorld(t)
	a := w.cell(1)
	a.container("web", 2)
	wk := newWorker(a.path)
	a.policies.Add(rule("web db tcp 80"))
	for _, c := range []struct {
		name   string
		change func(f *flow.Flow, src, dst *end, peer *uint32)
		stands bool
	}{
		{"nothing changed", func(*flow.Flow, *end, *end, *uint32) {}, true},
		{"another peer", func(_ *flow.Flow, _, _ *end, peer *uint32) { *peer = 8 }, false},
		{"no peer", func(_ *flow.Flow, _, _ *end, peer *uint32) { *peer = 0 }, false},
		{"another source", func(_ *flow.Flow, src, _ *end, _ *uint32) { src.incarnation++ }, false},
		{"another destination", func(_ *flow.Flow, _, dst *end, _ *uint32) { dst.incarnation++ }, false},
		{"the source is there, not here", func(_ *flow.Flow, src, _ *end, _ *uint32) { src.slot = flow.NoSlot }, false},
		{"the destination is here, not there", func(_ *flow.Flow, _, dst *end, _ *uint32) { dst.slot = 1 }, false},
		{"the source is another app", func(_ *flow.Flow, src, _ *end, _ *uint32) { src.tag = tags["other"] }, false},
		{"the destination is another app", func(_ *flow.Flow, _, dst *end, _ *uint32) { dst.tag = tags["other"] }, false},
		{"an untagged packet", func(_ *flow.Flow, _, dst *end, _ *uint32) { dst.tag = 0 }, true},
		{"judged by an older table, still allowed", func(f *flow.Flow, _, _ *end, _ *uint32) { f.Generation-- }, true},
		{"judged by an older table, not allowed", func(f *flow.Flow, _, _ *end, _ *uint32) { f.Generation--; f.DstPort = 81 }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			src := end{tag: tags["web"], incarnation: 5, slot: 0}
			dst := end{tag: tags["db"], incarnation: 6, slot: flow.NoSlot}
			peer := uint32(7)
			wk.key = flow.Key{Src: addrPort("10.255.1.2:1").Addr(), Dst: addrPort("10.255.2.2:1").Addr(), SrcPort: 1, DstPort: 80, Proto: 6}
			wk.record(&src, &dst, peer, a.path.generation())
			if err := a.path.flows.Insert(&wk.flow, nil); err != nil {
				t.Fatal(err)
			}
			c.change(&wk.flow, &src, &dst, &peer)
			if got := wk.same(flow.Forward, &src, &dst, peer) && wk.stillAllowed(); got != c.stands {
				t.Errorf("a packet of the initiator: stands %t", got)
			}
			if got := wk.same(flow.Backward, &dst, &src, peer) && wk.stillAllowed(); got != c.stands {
				t.Errorf("a packet of the responder: stands %t", got)
			}
		})
	}
}

// A change that comes between a verdict and its record is not overlooked: what
// Cut did not find yet is taken back.
func TestChangeBetweenVerdictAndRecord(t *testing.T) {
	for name, c := range map[string]struct {
		change func(a *testCell, server *container)
		want   Reason
	}{
		"policy removed":       {func(a *testCell, _ *container) { a.policies.Remove(rule("web db tcp 80")) }, NoPolicy},
		"another policy":       {func(a *testCell, _ *container) { a.policies.Add(rule("web db tcp 99")) }, Passed},
		"destination replaced": {func(a *testCell, k *container) { a.path.Detach(k.addr); a.containerAt("db", 3, 99) }, EndpointGone},
		"another container":    {func(a *testCell, _ *container) { a.container("db", 9) }, Passed},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			a := w.cell(1)
			client, server := a.container("web", 2), a.container("db", 3)
			w.allow("web db tcp 80")
			snap := a.fib.Load()
			src, dst := localEnd(snap.Local(client.addr)), localEnd(snap.Local(server.addr))
			wk := newWorker(a.path)
			if err := packet.Parse(packettest.TCP(client.at(1), server.at(80), fSYN, 1, 0, nil), &wk.h); err != nil {
				t.Fatal(err)
			}
			wk.key = flow.Key{Src: client.addr, Dst: server.addr, SrcPort: 1, DstPort: 80, Proto: 6}
			wk.record(&src, &dst, 0, a.path.generation())
			c.change(a, server)
			if err := a.path.flows.Insert(&wk.flow, nil); err != nil {
				t.Fatal(err)
			}
			if got := wk.check(snap, &src, &dst); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
			if n := a.path.FlowCount(); (n == 1) != (c.want == Passed) {
				t.Errorf("%d flows", n)
			}
		})
	}
}

// The reader of a container that is gone carries nothing for the one that has its
// address now.
func TestReaderOfAFormerContainer(t *testing.T) {
	w := newWorld(t)
	a := w.cell(1)
	client, server := a.container("web", 2), a.container("db", 3)
	w.allow("web db udp 53")
	a.fib.Update(func(b *fib.Builder) {
		l := *a.fib.Load().Local(client.addr)
		l.Incarnation++
		b.PutLocal(l)
	})
	before := a.path.Stats()
	client.send(packettest.UDP(client.at(1), server.at(53), nil))
	client.send(packettest.UDP(client.at(1), addrPort("169.254.0.2:53"), nil))
	a.dropped(before, EndpointGone, EndpointGone)
	server.expect()
	// Nor does its device get what is meant for the next.
	w.allow("db web udp 53")
	before = a.path.Stats()
	server.send(packettest.UDP(server.at(1), client.at(53), nil))
	a.dropped(before, NoEndpoint)
	client.expect()
	server.got()
	if len(a.queries) != 0 {
		t.Errorf("queries %q", a.queries)
	}
}

func TestReasonsHaveWords(t *testing.T) {
	seen := map[string]bool{}
	for r := range NumReasons {
		if r.String() == "" || r.Explain() == "" || seen[r.String()] {
			t.Errorf("reason %d: %q %q", r, r, r.Explain())
		}
		seen[r.String()] = true
	}
}
