package datapath

import (
	"net/netip"

	"tulle/overlay/fib"
	"tulle/overlay/flow"
	"tulle/overlay/packet"
	"tulle/policy"
	"tulle/policy/table"
)

// end is one end of a packet, as far as it is known.
type end struct {
	tag         policy.Tag // NoTag: none, or not known
	incarnation uint64     // 0: not known
	slot        int        // flow.NoSlot: not of this cell
	// anyone: nobody tells which app this is (a silk peer's container, as a
	// destination), so the other end's Reach must do.
	anyone bool
	// unnamed: a silk peer's container, as a source, whose packet says no app.
	unnamed bool
}

func (e *end) here() bool { return e.slot != flow.NoSlot }

// localEnd is a container of this cell.
func localEnd(l *fib.Local) end {
	return end{tag: l.Tag, incarnation: l.Incarnation, slot: l.Slot}
}

// judge decides about the TCP or UDP packet in w.h, which goes from src to dst,
// of which at most one is a peer's. A packet of a known flow passes as long as
// the flow stands; any other needs a policy, and is recorded. w.verdict is the record.
func (w *worker) judge(snap *fib.Snapshot, src, dst *end, peer uint32) Reason {
	h := &w.h
	w.key = flow.Key{Src: h.Src, Dst: h.Dst, SrcPort: h.SrcPort, DstPort: h.DstPort, Proto: h.Proto}
	w.seg = flow.Segment{Bytes: h.TotalLen, Flags: h.TCPFlags, Seq: h.Seq, Ack: h.Ack, Len: h.PayloadLen}
	opens := h.Proto == packet.ProtoTCP && h.TCPFlags&(packet.FlagSYN|packet.FlagACK) == packet.FlagSYN
	w.recorded = false

	flows := w.p.flows
	if d, hit := w.find(opens); hit {
		switch {
		case !w.same(d, src, dst, peer), !w.stillAllowed():
			// Whoever meets it first ends it for both ends: Cut will not find it.
			w.p.endFound(snap, &w.flow)
		case opens && w.flow.State.Over():
			// A new connection over the ports of the last, judged as such.
		case opens && d == flow.Backward && !w.allowed(src, dst, h.Proto, h.DstPort):
			// The other end opens one of its own, for which it has no policy.
			return w.denied(src)
		default:
			flows.Touch(w.flow.Ref(), d, &w.seg)
			w.verdict, w.recorded = w.flow.Ref(), true
			return Passed
		}
	}
	return w.begin(snap, src, dst, peer)
}

// find is Lookup of w.key into w.flow. Packets come in trains, and then it is the flow
// of the last one, as long as that lives; of what may have changed since it was read,
// only a packet that opens asks.
func (w *worker) find(opens bool) (flow.Direction, bool) {
	if w.found && !opens && w.key == w.foundKey && w.p.flows.Alive(w.flow.Ref()) {
		return w.way, true
	}
	w.way, w.found = w.p.flows.Lookup(&w.key, &w.flow)
	w.foundKey = w.key
	return w.way, w.found
}

// begin judges a packet without a flow, and records one.
func (w *worker) begin(snap *fib.Snapshot, src, dst *end, peer uint32) Reason {
	h := &w.h
	// Read before the verdict: a change after it shows in check.
	generation := w.p.generation()
	tcp := h.Proto == packet.ProtoTCP
	switch {
	case w.allowed(src, dst, h.Proto, h.DstPort):
		w.record(src, dst, peer, generation)
	case tcp && h.TCPFlags&packet.FlagSYN == 0 && w.replies(src, dst):
		// In the middle of a connection whose record was lost: the packet is a reply.
		w.key = w.key.Reverse()
		w.seg.Backward = true
		w.record(dst, src, peer, generation)
	default:
		return w.denied(src)
	}
	if tcp && h.TCPFlags&packet.FlagRST != 0 {
		return Passed // an end without a beginning leaves nothing to follow
	}
	switch err := w.p.flows.Insert(&w.flow, &w.seg); err {
	case nil:
	case flow.ErrEndpointFull:
		return EndpointFlowsFull
	default:
		return FlowsFull
	}
	w.verdict, w.recorded = w.flow.Ref(), true
	w.cost += paceNewFlow
	r := w.check(snap, src, dst)
	if r == Passed {
		w.tellFlow()
	}
	return r
}

// replies reports whether the segment from src may belong to a connection that dst opened.
// Silk cells send replies untagged: then, as when dst opens one, what dst's app may reach
// at all must do.
func (w *worker) replies(src, dst *end) bool {
	src.anyone = src.unnamed
	return w.allowed(dst, src, w.h.Proto, w.h.SrcPort)
}

// record fills w.flow for a flow that from opens (or opened) to to.
func (w *worker) record(from, to *end, peer uint32, generation uint64) {
	w.found = false
	f := &w.flow
	*f = flow.Flow{
		Key:            w.key,
		SrcTag:         from.tag,
		DstTag:         to.tag,
		SrcIncarnation: from.incarnation,
		DstIncarnation: to.incarnation,
		Peer:           peer,
		SrcSlot:        from.slot,
		DstSlot:        to.slot,
		Generation:     generation,
	}
	if from.here() {
		f.Role |= flow.SourceHere
	}
	if to.here() {
		f.Role |= flow.DestinationHere
	}
	if from.anyone {
		f.Role |= flow.Weak
		f.SrcTag = table.Any
	}
	if to.anyone {
		f.Role |= flow.Weak
		f.DstTag = table.Any
	}
}

// check closes the gap between verdict and record. Whoever cuts changes the
// tables first and then looks for flows; it finds this one, or the change shows
// here.
func (w *worker) check(snap *fib.Snapshot, src, dst *end) Reason {
	f := &w.flow
	if f.Generation != w.p.generation() && !w.p.allowsFlow(f) {
		w.p.flows.Delete(f.Ref(), nil)
		return w.denied(src)
	}
	if now := w.p.fib.Load(); now != snap && !w.sameEnds(now, src, dst) {
		w.p.flows.Delete(f.Ref(), nil)
		return EndpointGone
	}
	return Passed
}

// sameEnds reports whether the ends of the packet are what they were.
func (w *worker) sameEnds(now *fib.Snapshot, src, dst *end) bool {
	return incarnation(now, w.h.Src) == src.incarnation && incarnation(now, w.h.Dst) == dst.incarnation
}

// same reports whether the flow found still is one between these ends.
func (w *worker) same(d flow.Direction, src, dst *end, peer uint32) bool {
	f := &w.flow
	from, to := src, dst
	if d == flow.Backward {
		from, to = dst, src
	}
	return f.Peer == peer && f.SrcIncarnation == from.incarnation && f.DstIncarnation == to.incarnation &&
		from.here() == (f.Role&flow.SourceHere != 0) && to.here() == (f.Role&flow.DestinationHere != 0) &&
		!otherTag(f.SrcTag, from.tag) && !otherTag(f.DstTag, to.tag)
}

// stillAllowed is the backstop of Cut: no flow outlives its policy, even one
// that Cut has not come to yet or was not told of.
func (w *worker) stillAllowed() bool {
	f := &w.flow
	if g := w.p.generation(); f.Generation != g {
		if !w.p.allowsFlow(f) {
			return false
		}
		w.p.flows.SetGeneration(f.Ref(), g)
		f.Generation = g
	}
	return true
}

// otherTag reports whether an end has become another app. What is not known, or
// was not, is no other.
func otherTag(recorded, now policy.Tag) bool {
	return recorded != now && now != policy.NoTag && recorded != policy.NoTag && recorded != table.Any
}

// generation grows with every change of a table.
func (p *Path) generation() uint64 { return p.policies.Generation() + p.reach.Generation() }

// allowed asks the tables whether from may open a flow to to.
func (w *worker) allowed(from, to *end, proto uint8, port uint16) bool {
	return w.p.allows(from.tagOrAny(), to.tagOrAny(), proto, port)
}

func (e *end) tagOrAny() policy.Tag {
	if e.anyone {
		return table.Any
	}
	return e.tag
}

func (p *Path) allows(from, to policy.Tag, proto uint8, port uint16) bool {
	if from == table.Any || to == table.Any {
		return p.reach.Lookup(from, to, policy.Protocol(proto), port)
	}
	return p.policies.Lookup(from, to, policy.Protocol(proto), port)
}

// allowsFlow judges a recorded flow as its first packet was.
func (p *Path) allowsFlow(f *flow.Flow) bool {
	return p.allows(f.SrcTag, f.DstTag, f.Proto, f.DstPort)
}

// denied is the reason for a packet from src that no policy allows.
func (w *worker) denied(src *end) Reason {
	if src.tag == policy.NoTag && !src.here() {
		return NoIdentity
	}
	return NoPolicy
}

// judgeICMP decides about an ICMP packet from an end to an end. Only an error
// that quotes a packet which the receiver sent in a known flow passes, from where
// that packet went, or from the cell it went to. local is the container of this
// cell that must be the flow's end: the receiver, or the sender.
func (w *worker) judgeICMP(p []byte, snap *fib.Snapshot, peer *fib.Peer) Reason {
	h, q := &w.h, &w.quoted
	if !h.IsICMPError() || !h.IPv6 && (h.ICMPType == icmpRedirect || h.ICMPType == icmpSourceQuench) {
		return ICMPDenied
	}
	if packet.ParseQuoted(p, h, q) != nil || q.FragmentOffset != 0 || q.Src != h.Dst ||
		q.Proto != packet.ProtoTCP && q.Proto != packet.ProtoUDP {
		return ICMPUnrelated
	}
	if q.Dst != h.Src && (peer == nil || !isGateway(peer, h.Src)) {
		return ICMPUnrelated
	}
	w.key = flow.Key{Src: q.Src, Dst: q.Dst, SrcPort: q.SrcPort, DstPort: q.DstPort, Proto: q.Proto}
	f := &w.flow
	w.found = false
	d, hit := w.p.flows.Lookup(&w.key, f)
	if !hit {
		return ICMPUnrelated
	}
	var id uint32
	if peer != nil {
		id = peer.ID
	}
	src, dst := f.SrcIncarnation, f.DstIncarnation
	if d == flow.Backward {
		src, dst = dst, src
	}
	if f.Peer != id || incarnation(snap, q.Src) != src || incarnation(snap, q.Dst) != dst ||
		f.Generation != w.p.generation() && !w.p.allowsFlow(f) ||
		q.Proto == packet.ProtoTCP && !inWindow(f, d, q.Seq) {
		return ICMPUnrelated
	}
	return Passed
}

// ICMP types that an error must not be, though it quotes a packet: nobody here is
// a router to be redirected to (RFC 1122 section 3.2.2.2), and nobody quenches
// (RFC 6633).
const (
	icmpSourceQuench = 4
	icmpRedirect     = 5
)

// inWindow reports whether seq is of a segment that was sent in direction d and
// may still be on its way: between what the other end acknowledged and what was
// sent (RFC 5927 section 4.1).
func inWindow(f *flow.Flow, d flow.Direction, seq uint32) bool {
	sent := f.Next[d]
	acked := sent - 1<<16
	if f.State.SeenAck(1 - d) {
		acked = f.Acked[1-d]
	}
	return int32(seq-acked) >= 0 && int32(sent-seq) >= 0
}

// incarnation is who has an address, here or at a peer; 0 if not known.
func incarnation(snap *fib.Snapshot, addr netip.Addr) uint64 {
	local, remote, _ := snap.Lookup(addr)
	switch {
	case local != nil:
		return local.Incarnation
	case remote != nil:
		return remote.Incarnation
	}
	return 0
}

// isGateway reports whether addr is a peer's own address. A lease of one address
// has none: the address is what lives there (silk's routers).
func isGateway(peer *fib.Peer, addr netip.Addr) bool {
	return peer.Subnet.Bits() < 32 && peer.Gateway() == fib.Name(addr)
}
