package datapath

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"sync"

	"tulle/overlay/fib"
	"tulle/overlay/packet"
	"tulle/overlay/pmtu"
	"tulle/policy"
)

// prober finds the MTU of the ways to the peers that are sent to. A probe is an
// ICMP echo from this cell's own address to the peer's, inside the tunnel as any
// packet is: a kernel answers it as well as a Tulle cell. What it finds lies in the
// peer's fib.Link, where egress reads it.
type prober struct {
	p *Path

	mu       sync.Mutex // guards what follows
	w        *worker
	packet   []byte // one probe, behind the headroom
	searches map[*fib.Link]*search
}

type search struct {
	*pmtu.Search
	nonce uint64 // of this search's probes: an answer that has it saw one of them
	peer  *fib.Peer
}

// nonceLen is what an answer to a probe must bring back.
const nonceLen = 8

func newProber(p *Path) *prober {
	return &prober{p: p, w: newWorker(p), packet: make([]byte, headroom, headroom+p.mtu), searches: make(map[*fib.Link]*search)}
}

// used marks the way to a peer as one that packets take. The first one wakes the
// prober, so that a small path is found before a connection has waited for long.
func (p *Path) used(l *fib.Link) {
	if !l.Used.Load() {
		l.Used.Store(true)
		if p.awake != nil {
			select {
			case p.awake <- struct{}{}:
			default:
			}
		}
	}
}

// run begins searches when egress first uses a way.
func (q *prober) run() {
	for {
		select {
		case <-q.p.awake:
			q.each(false)
		case <-q.p.stop:
			return
		}
	}
}

// tick goes on with the searches of ways that were used since the last one.
func (q *prober) tick() { q.each(true) }

func (q *prober) each(tick bool) {
	if q.p.mtu == 0 || !q.p.started.Load() {
		return
	}
	snap := q.p.fib.Load()
	q.mu.Lock()
	defer q.mu.Unlock()
	snap.Peers(func(peer *fib.Peer) {
		s := q.searches[peer.Link]
		switch {
		case !isGateway(peer, peer.Gateway()) || !isHost(q.p.gateway, q.p.self):
			return // nobody there, or here, to send an echo
		case s != nil:
			s.peer = peer
			if !tick || !peer.Link.Used.Swap(false) {
				return
			}
		case !peer.Link.Used.Load():
			return
		default:
			s = &search{pmtu.New(q.p.mtu), rand.Uint64(), peer}
			q.searches[peer.Link] = s
		}
		q.send(s, s.Tick())
	})
	if tick && len(q.searches) > 0 {
		for l, s := range q.searches {
			if now := snap.Peer(s.peer.Name); now == nil || now.Link != l {
				delete(q.searches, l)
			}
		}
	}
}

// isHost says whether a lease has room for the cell's own address beside its
// containers'.
func isHost(gateway netip.Addr, lease netip.Prefix) bool { return lease.Bits() < gateway.BitLen() }

// send sends probes of these sizes, and publishes what is known by now.
func (q *prober) send(s *search, sizes []int) {
	for _, size := range sizes {
		var nonce [nonceLen]byte
		binary.BigEndian.PutUint64(nonce[:], s.nonce)
		b := packet.AppendEcho(q.packet[:headroom], q.p.gateway, s.peer.Gateway(), false, uint16(s.nonce), uint16(size), nonce[:], size)
		q.w.seal(s.peer, policy.NoTag, b)
	}
	s.peer.Link.MTU.Store(uint32(s.MTU()))
}

// fromPeer takes an echo that a peer itself sent to this cell itself: a probe, which
// is answered, or the answer to one. All else is no concern of this cell's.
func (q *prober) fromPeer(peer *fib.Peer, p []byte, h *packet.Header) Reason {
	e, ok := packet.ParseEcho(p, h)
	switch {
	case !ok:
		return OutsideLease
	case e.Reply:
		return q.answered(peer, e)
	case !q.p.answers.take(h.Src):
		return OutsideLease
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	// The nonce is enough: the way back is the peer's to look for.
	payload := e.Payload[:min(len(e.Payload), 64)]
	q.w.seal(peer, policy.NoTag, packet.AppendEcho(q.w.answer[:headroom], q.p.gateway, h.Src, true, e.ID, e.Seq, payload, 0))
	return Passed
}

func (q *prober) answered(peer *fib.Peer, e packet.Echo) Reason {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.searches[peer.Link]
	if s == nil || len(e.Payload) < nonceLen || binary.BigEndian.Uint64(e.Payload) != s.nonce {
		return OutsideLease
	}
	q.send(s, s.Answer(int(e.Seq)))
	return Passed
}
