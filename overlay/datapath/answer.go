package datapath

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"

	"tulle/overlay/fib"
	"tulle/overlay/packet"
	"tulle/policy"
)

// answerLimit bounds the ICMP errors that each source address is sent: a bucket
// for each hash of an address, filled by the tick. A RST is not limited: it is as
// small as what it answers, and a refused connection must end.
type answerLimit struct {
	seed    uint32
	buckets [4096]atomic.Int32
}

func (l *answerLimit) refill(n int) {
	for i := range l.buckets {
		l.buckets[i].Store(int32(n))
	}
}

func (l *answerLimit) take(addr netip.Addr) bool {
	a := addr.As16()
	b := &l.buckets[binary.BigEndian.Uint32(a[12:])*l.seed>>20]
	// Not below zero by more than the goroutines that race here.
	return b.Load() > 0 && b.Add(-1) >= 0
}

// reply is what the sender of a dropped packet is told.
type reply uint8

const (
	silence reply = iota
	// refuse: RST for TCP, else ICMP port unreachable. An address that is nobody's
	// says the same as one that no policy reaches: a caller learns "refused", at
	// once, and not which containers there are.
	refuse
	unreachableNet
	prohibited
	tooBig
	ttlExceeded
)

// replies of the reasons that have one.
var replies = [NumReasons]reply{
	TTLExpired:         ttlExceeded,
	TooBig:             tooBig,
	OutsideOverlay:     prohibited,
	ResolverPort:       refuse,
	CellAddress:        refuse,
	NoRoute:            unreachableNet,
	NoEndpoint:         refuse,
	NoPolicy:           refuse,
	NoIdentity:         refuse,
	NotAllowedProtocol: refuse,
	ICMPDenied:         refuse,
	FlowsFull:          refuse,
	EndpointFlowsFull:  refuse,
}

// build makes the answer to the dropped packet p, parsed into w.h, behind the
// headroom of w.answer. Its length, headroom included; 0 if there is none. from
// is the sender of ICMP errors; a RST comes from where the packet went.
func (w *worker) build(r Reason, p []byte, from netip.Addr) int {
	h := &w.h
	what := replies[r]
	if what == silence {
		return 0
	}
	b := w.answer[:headroom]
	if what == refuse && h.Proto == packet.ProtoTCP {
		b = packet.AppendReset(b, p, h)
	} else {
		b = w.icmp(b, what, p, from)
	}
	if len(b) == headroom {
		return 0
	}
	return len(b)
}

// minMTU6 is what every path of IPv6's carries (RFC 8200 section 5): no sender believes
// in less.
const minMTU6 = 1280

// gatewayOf is this cell's own address in a packet's family.
func (p *Path) gatewayOf(h *packet.Header) netip.Addr {
	if h.IPv6 {
		return p.gateway6
	}
	return p.gateway
}

func (w *worker) icmp(b []byte, what reply, p []byte, from netip.Addr) []byte {
	h := &w.h
	if !w.p.answers.take(h.Src) {
		w.c.limited.Add(1)
		return b
	}
	switch what {
	case unreachableNet:
		return packet.AppendUnreachable(b, from, packet.CodeNetUnreachable, p, h)
	case prohibited:
		return packet.AppendUnreachable(b, from, packet.CodeProhibited, p, h)
	case tooBig:
		if !h.DontFragment || w.limit == 0 {
			return b
		}
		mtu := w.limit
		if h.IPv6 {
			mtu = max(mtu, minMTU6)
		}
		return packet.AppendTooBig(b, from, uint16(mtu), p, h)
	case ttlExceeded:
		return packet.AppendTimeExceeded(b, from, p, h)
	default:
		return packet.AppendUnreachable(b, from, packet.CodePortUnreachable, p, h)
	}
}

// answerHere tells a container of this cell why its packet was dropped.
func (w *worker) answerHere(e *endpoint, r Reason, p []byte, from netip.Addr) {
	if n := w.build(r, p, from); n != 0 {
		w.deliver(e, w.answer[:n])
		w.c.answers.Add(1)
	}
}

// deliver gives a device the plain packet behind the headroom of b.
func (w *worker) deliver(e *endpoint, b []byte) Reason {
	packet.Virtio{}.Encode(b[virtioAt:])
	return w.write(e, b[virtioAt:])
}

// answerPeer tells a peer's container. The answer carries no tag: it is nobody's,
// and passes at the other end by the flow that it ends.
func (w *worker) answerPeer(peer *fib.Peer, r Reason, p []byte) {
	if n := w.build(r, p, w.p.gatewayOf(&w.h)); n != 0 {
		w.seal(peer, policy.NoTag, w.answer[:n])
		w.c.answers.Add(1)
	}
}
