package datapath

import (
	"errors"
	"net/netip"
	"time"

	"tulle/overlay/fib"
	"tulle/overlay/flow"
	"tulle/overlay/packet"
	"tulle/overlay/udp"
	"tulle/policy"
)

// How many messages one receive takes: of trains of up to 64 segments each, which
// would be cold before they are written were they more; and of single datagrams, where
// nothing joins them below and a super-packet is made of what one call brings.
const (
	batchLen  = 8
	singleLen = 64
)

// ingress carries what peers send in one tunnel mode, a batch at a time.
type ingress struct {
	worker
	mode  fib.Mode
	batch []udp.Message
	ask   int // how many of batch the next receive takes
	join  *packet.Coalescer
	// to is the device of each group of join, whose packets lie in the batch until
	// flush.
	to    [packet.MaxGroups]*endpoint
	frags fragments
	outer packet.ECN // of the outer header of the frame at hand
	crowd int        // as the constant; a test's own
	keys  []flow.Key // of ahead
}

func newBatch() []udp.Message {
	batch := make([]udp.Message, singleLen) // memory that nothing was received into is not there
	for i := range batch {
		batch[i].Buf = make([]byte, 65535)
	}
	return batch
}

func newIngress(p *Path, mode fib.Mode) *ingress {
	w := &ingress{mode: mode, ask: batchLen, join: packet.NewCoalescer(), crowd: crowd, keys: make([]flow.Key, 0, batchLen*udp.MaxSegments)}
	w.p = p
	w.frags.init(p.limits.Fragments, p.limits.FragmentBytes, &w.c)
	return w
}

// How long the reader waits after an error of the socket: the first time, and at most.
const (
	retryFirst = time.Millisecond
	retryMost  = time.Second
)

// run receives until the socket is closed. Nobody else reads it: whatever else the
// kernel says (it is out of memory; somebody aborted the socket) may pass.
func (w *ingress) run() {
	retry := retryFirst
	for {
		n, err := w.p.conn.Receive(w.batch[:w.ask])
		switch {
		case err == nil:
			retry = retryFirst
		case errors.Is(err, udp.ErrClosed):
			return
		default:
			w.p.log.Error("tunnel socket cannot be read; it is tried again", "error", err, "after", retry)
			select {
			case <-time.After(retry):
			case <-w.p.stop:
			}
			retry = min(2*retry, retryMost)
			continue
		}
		w.ask = askAfter(w.batch[:n], w.ask)
		w.receive(w.batch[:n])
	}
}

// askAfter is how many messages the next receive takes, behind this one of so many.
func askAfter(got []udp.Message, asked int) int {
	for i := range got {
		if got[i].N > got[i].Segment {
			return batchLen
		}
	}
	if len(got) >= batchLen {
		return singleLen
	}
	return asked
}

// FromTunnel carries what the Tunnel received: frames that it has taken out of
// sessions, From the sender's tunnel address. An empty one stands for a packet of
// that peer's in which there is no frame. What the messages hold is rewritten.
func (p *Path) FromTunnel(batch []udp.Message) {
	p.tunnelMu.Lock()
	defer p.tunnelMu.Unlock()
	p.inside.receive(batch)
}

// peer is who sent a message in this mode.
func (w *ingress) peer(snap *fib.Snapshot, from netip.AddrPort) *fib.Peer {
	if w.mode == fib.WireGuard {
		return snap.PeerByTunnel(from.Addr())
	}
	return snap.PeerByUnderlay(from)
}

// receive carries one batch, all of it under the same snapshot.
func (w *ingress) receive(batch []udp.Message) {
	snap := w.p.fib.Load()
	started := w.p.started.Load()
	if w.p.flows.Len() >= w.crowd {
		w.ahead(batch)
	}
	for i := range batch {
		m := &batch[i]
		peer := w.peer(snap, m.From)
		w.outer = packet.ECN(m.ECN)
		if m.N == 0 {
			w.datagram(snap, started, peer, nil)
		}
		for b := m.Buf[:m.N]; len(b) > 0; {
			n := len(b)
			if m.Segment > 0 {
				n = min(n, m.Segment)
			}
			w.datagram(snap, started, peer, b[:n])
			b = b[n:]
		}
	}
	w.flush()
}

// datagram carries one frame: counts what becomes of it, and answers.
func (w *ingress) datagram(snap *fib.Snapshot, started bool, peer *fib.Peer, b []byte) {
	switch {
	case !started:
		w.c.drop(NotStarted)
		return
	case peer == nil:
		w.c.drop(UnknownPeer)
		return
	}
	p, tag, r := w.open(peer, w.mode, b)
	if r == Passed && !packet.CombineECN(p, w.outer) {
		r = Congested
	}
	if r == Passed {
		r = w.carry(snap, peer, p, tag)
	}
	if r != Passed {
		w.c.drop(r)
		if replies[r] != silence && w.sourceKnown(peer) {
			w.tellRefusal(snap, r, tag)
			w.answerPeer(peer, r, p)
		}
	}
}

// sourceKnown reports whether the packet in w.h has a source that may be answered:
// a container's, in the peer's lease.
func (w *ingress) sourceKnown(peer *fib.Peer) bool {
	return peer.Leases(w.h.Src) && !isGateway(peer, w.h.Src)
}

// carry takes a peer's packet to where it goes. Faults of the peer are silent
// drops; so is all that comes from the peer itself and is not an error of ours.
func (w *ingress) carry(snap *fib.Snapshot, peer *fib.Peer, p []byte, tag policy.Tag) Reason {
	h := &w.h
	if !peer.Leases(h.Src) {
		return OutsideLease
	}
	if !snap.Own(h.Dst) {
		return NotOurs
	}
	src, r := w.identify(snap, peer, tag)
	if r != Passed {
		return r
	}
	local := snap.Local(h.Dst)
	if isGateway(peer, h.Src) {
		if h.Dst == w.p.gateway { // probes are IPv4's
			return w.p.probes.fromPeer(peer, p, h)
		}
		return w.fromGateway(snap, peer, local, p)
	}
	if fib.Name(h.Dst) == w.p.gateway {
		return CellAddress
	}
	if local == nil {
		return NoEndpoint
	}
	e := w.p.device(local)
	if e == nil {
		return NoEndpoint
	}
	if h.FragmentOffset != 0 {
		return w.laterFragment(e, p)
	}
	switch h.Proto {
	case packet.ProtoTCP, packet.ProtoUDP:
		dst := localEnd(local)
		r = w.judge(snap, &src, &dst, peer.ID)
	case packet.ProtoICMP, packet.ProtoICMPv6:
		r = w.judgeICMP(p, snap, peer)
	default:
		r = NotAllowedProtocol
	}
	if h.MoreFragments {
		return w.firstFragment(e, p, r)
	}
	if r != Passed {
		return r
	}
	if peer.Kind == fib.Silk {
		packet.CompleteLeftover(p, h)
	}
	if h.TCPFlags&packet.FlagSYN != 0 {
		// What the container will send must fit the way back.
		w.clamp(peer, p)
	}
	return w.forward(e, p)
}

// identify says who sent the packet. A Tulle peer's container is known, and its
// tag must be; an unknown one, or an untagged packet, has no identity and passes
// by a flow or not at all. A silk peer's tag is taken as it is.
func (w *ingress) identify(snap *fib.Snapshot, peer *fib.Peer, tag policy.Tag) (end, Reason) {
	src := end{slot: flow.NoSlot}
	if peer.Kind == fib.Silk {
		src.tag, src.unnamed = tag, tag == policy.NoTag
		return src, Passed
	}
	_, remote, _ := snap.Lookup(w.h.Src)
	if remote == nil || remote.Peer.ID != peer.ID {
		return src, Passed
	}
	src.incarnation = remote.Incarnation
	if tag != policy.NoTag && remote.Tag != policy.NoTag {
		if tag != remote.Tag {
			return src, WrongTag
		}
		src.tag = tag
	}
	return src, Passed
}

// clamp holds the segment size that a SYN announces to the way to its sender.
func (w *ingress) clamp(peer *fib.Peer, p []byte) {
	if mtu := w.p.wayMTU(peer); mtu != 0 {
		packet.ClampMSS(p, &w.h, mtu, false)
	}
}

// fromGateway takes from a peer itself only ICMP errors that quote a flow of ours.
func (w *ingress) fromGateway(snap *fib.Snapshot, peer *fib.Peer, local *fib.Local, p []byte) Reason {
	if local == nil || w.h.IsFragment() || !w.h.IsICMPError() {
		return OutsideLease
	}
	e := w.p.device(local)
	if e == nil {
		return OutsideLease
	}
	if r := w.judgeICMP(p, snap, peer); r != Passed {
		return ICMPUnrelated
	}
	return w.forward(e, p)
}

// forward puts the judged packet among those that flush writes. This cell is one
// hop.
func (w *ingress) forward(e *endpoint, p []byte) Reason {
	if !packet.DecrementTTL(p) {
		return TTLExpired
	}
	w.join.UDP = e.udpOffload
	g, joined := w.join.Add(p, &w.h)
	if g == packet.Full {
		w.flush()
		g, joined = w.join.Add(p, &w.h)
	}
	if !joined {
		w.to[g] = e
	}
	return Passed
}

// flush writes the packets that were judged, joined where they can be, each with
// one call.
func (w *ingress) flush() {
	for g := range w.join.Len() {
		pieces := w.join.Pieces(g)
		length := -packet.VirtioLen
		for _, b := range pieces {
			length += len(b)
		}
		if len(pieces) > 2 { // more than a header and a packet
			w.to[g].given.Add(1)
		}
		if r := written(w.to[g].dev.Write(pieces...)); r != Passed {
			w.c.drop(r)
		} else {
			w.c.pass(length)
		}
		w.to[g] = nil
	}
	w.join.Reset()
}

// firstFragment is egress's, the other way.
func (w *ingress) firstFragment(e *endpoint, p []byte, r Reason) Reason {
	held, fr := w.frags.first(&w.h, w.p.flows.Now(), w.verdict, r == Passed && w.recorded)
	if r != Passed {
		return r
	}
	if fr != Passed {
		return fr
	}
	r = w.forward(e, p)
	for _, b := range held {
		if parse(b, &w.h) != Passed {
			continue
		}
		if r := w.forward(e, b); r != Passed {
			w.c.drop(r)
		}
	}
	return r
}

// laterFragment is egress's, the other way.
func (w *ingress) laterFragment(e *endpoint, p []byte) Reason {
	switch what, r := w.frags.later(&w.h, p, w.p.flows); what {
	case forwardIt:
		return w.forward(e, p)
	case holdIt:
		return Passed
	default:
		return r
	}
}
