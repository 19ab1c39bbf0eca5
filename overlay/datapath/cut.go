package datapath

import (
	"net/netip"

	"tulle/overlay/fib"
	"tulle/overlay/flow"
	"tulle/overlay/packet"
	"tulle/policy"
	"tulle/policy/table"
)

// Cut judges the flows of these tag pairs again and ends those that are no longer
// allowed, idle ones too: a container of this cell reads a reset (TCP) or an ICMP
// port unreachable (UDP), and so does, if its own cell has not yet done the same,
// the one at the other end of a TCP connection. It returns how many it ended.
//
// It is called after the tables and the fib have changed. A pair (app, table.Any)
// or (table.Any, app) names flows with silk peers; those of a pair's ends are
// looked at in any case.
func (p *Path) Cut(pairs []Pair) int {
	snap := p.fib.Load()
	n := 0
	judge := func(f *flow.Flow) {
		if !p.allowsFlow(f) && p.end(snap, f) {
			n++
		}
	}
	p.controlMu.Lock()
	defer p.controlMu.Unlock()
	for _, pair := range pairs {
		p.flows.EachPair(pair.Src, pair.Dst, judge)
		if pair.Dst != table.Any {
			p.flows.EachPair(pair.Src, table.Any, judge)
		}
		if pair.Src != table.Any {
			p.flows.EachPair(table.Any, pair.Dst, judge)
		}
	}
	p.cut.Add(uint64(n))
	return n
}

// CutEndpoint ends the flows of an endpoint that is gone: of that incarnation, or
// of any if it is 0. It is called after the fib has changed.
func (p *Path) CutEndpoint(addr netip.Addr, incarnation uint64) int {
	return p.cutWhere(func(f *flow.Flow) bool {
		return fib.Name(f.Src) == addr && (incarnation == 0 || f.SrcIncarnation == incarnation) ||
			fib.Name(f.Dst) == addr && (incarnation == 0 || f.DstIncarnation == incarnation)
	})
}

// CutPeer ends the flows with a peer that is gone, by its former ID. It is called
// after the fib has changed.
func (p *Path) CutPeer(id uint32) int {
	return p.cutWhere(func(f *flow.Flow) bool { return id != 0 && f.Peer == id })
}

// cutEndpointLocked is CutEndpoint for a container of this cell; its own device
// is told nothing.
func (p *Path) cutEndpointLocked(addr netip.Addr, incarnation uint64) {
	p.CutEndpoint(addr, incarnation)
}

func (p *Path) cutWhere(gone func(*flow.Flow) bool) int {
	snap := p.fib.Load()
	n := 0
	p.controlMu.Lock()
	defer p.controlMu.Unlock()
	p.flows.Each(func(f *flow.Flow) {
		if gone(f) && p.end(snap, f) {
			n++
		}
	})
	p.cut.Add(uint64(n))
	return n
}

// endFound ends a flow that a packet of its own found void between the change of
// tables or fib and the cut. Often that packet is the reset with which the other
// cell has just ended the flow: it does not pass any more, so the ends here would
// hear nothing.
func (p *Path) endFound(snap *fib.Snapshot, f *flow.Flow) {
	p.controlMu.Lock()
	defer p.controlMu.Unlock()
	if p.end(snap, f) {
		p.cut.Add(1)
	}
}

// end takes a flow out and tells its ends. The record goes first, so that nothing
// passes behind the resets. It reports false if another was faster.
func (p *Path) end(snap *fib.Snapshot, f *flow.Flow) bool {
	var last flow.Flow
	if !p.flows.Delete(f.Ref(), &last) {
		return false
	}
	if last.Proto == packet.ProtoTCP && last.State.Over() {
		return true // both sides know
	}
	for _, d := range []flow.Direction{flow.Forward, flow.Backward} {
		switch {
		case last.ToHere(d):
			p.endHere(snap, &last, d)
		case last.Proto == packet.ProtoTCP:
			p.endFar(snap, &last, d)
		}
	}
	return true
}

// toward is the key of packets in direction d.
func toward(f *flow.Flow, d flow.Direction) flow.Key {
	if d == flow.Backward {
		return f.Key.Reverse()
	}
	return f.Key
}

// endHere tells the container of this cell that direction d goes to.
func (p *Path) endHere(snap *fib.Snapshot, f *flow.Flow, d flow.Direction) {
	key := toward(f, d)
	local := snap.Local(key.Dst)
	incarnation := f.DstIncarnation
	if d == flow.Backward {
		incarnation = f.SrcIncarnation
	}
	if local == nil || local.Incarnation != incarnation {
		return // what has the address now knows nothing of the flow
	}
	e := p.device(local)
	if e == nil {
		return
	}
	w := p.control
	if f.Proto == packet.ProtoTCP {
		for b := range w.resets(f, d) {
			w.deliver(e, b)
		}
		return
	}
	// The error quotes a datagram that the container has sent.
	sent := key.Reverse()
	q := packet.AppendUDP(nil, netip.AddrPortFrom(sent.Src, sent.SrcPort), netip.AddrPortFrom(sent.Dst, sent.DstPort), nil)
	if packet.Parse(q, &w.h) != nil {
		return
	}
	w.deliver(e, packet.AppendUnreachable(w.answer[:headroom], p.gatewayOf(&w.h), packet.CodePortUnreachable, q, &w.h))
}

// endFar tells the container of another cell that direction d goes to. Its cell
// lets the reset pass while it still has the flow itself.
func (p *Path) endFar(snap *fib.Snapshot, f *flow.Flow, d flow.Direction) {
	_, _, peer := snap.Lookup(toward(f, d).Dst)
	if peer == nil || peer.ID != f.Peer {
		return
	}
	w := p.control
	for b := range w.resets(f, d) {
		w.seal(peer, policy.NoTag, b)
	}
}

// resets yields the RSTs that end a connection for the receiver of direction d,
// each behind the headroom of w.answer and good until the next. Linux takes only
// the exact next sequence number at once. That is the one behind the last byte
// that passed here; if something was lost on the way, it is what the receiver
// last acknowledged; so where they differ, both are sent. Should neither fit, the
// receiver's challenge comes to nowhere and is answered with the exact one.
func (w *worker) resets(f *flow.Flow, d flow.Direction) func(func([]byte) bool) {
	key := toward(f, d)
	back := 1 - d
	return func(yield func([]byte) bool) {
		build := func(seq uint32) bool {
			return yield(packet.AppendResetTo(w.answer[:headroom], key.Src, key.Dst, key.SrcPort, key.DstPort, seq, f.Next[back]))
		}
		sent := f.Packets[d] > 0
		if sent && !build(f.Next[d]) {
			return
		}
		if acked := f.Acked[back]; f.State.SeenAck(back) && !(sent && acked == f.Next[d]) && !build(acked) {
			return
		}
		if !sent && !f.State.SeenAck(back) {
			build(0) // a SYN alone: the acknowledgement of it is what counts
		}
	}
}
