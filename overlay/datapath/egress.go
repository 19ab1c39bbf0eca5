package datapath

import (
	"errors"
	"net/netip"

	"tulle/overlay/fib"
	"tulle/overlay/flow"
	"tulle/overlay/packet"
	"tulle/overlay/tun"
	"tulle/policy"
)

// egress carries what one container sends, in its own goroutine.
type egress struct {
	worker
	ep    *endpoint
	buf   []byte // headroom, of which the virtio header is the end, and the packet
	frags fragments
	pace  pace
}

// route is where an overlay packet goes: to a container of this cell, or a peer.
type route struct {
	ep   *endpoint
	peer *fib.Peer
	dst  end
	tag  policy.Tag // the source app's, for the wire
}

func newEgress(p *Path, ep *endpoint) *egress {
	w := &egress{ep: ep, buf: make([]byte, virtioAt+tun.MaxRead)}
	w.p = p
	w.frags.init(p.limits.Fragments/4, p.limits.FragmentBytes/4, &w.c)
	return w
}

// run reads the device until it is closed.
func (w *egress) run() {
	for {
		n, err := w.ep.dev.Read(w.buf[virtioAt:])
		if err != nil {
			if !errors.Is(err, tun.ErrClosed) {
				w.p.log.Warn("device cannot be read any more", "addr", w.ep.addr, "error", err)
			}
			return
		}
		if now := w.p.flows.Now() + 1; w.ep.seen.Load() != now {
			w.ep.seen.Store(now)
		}
		w.cost = pacePacket
		w.read(n)
		if w.v.GSOType != packet.GSONone {
			w.cost = 0
		}
		w.account(w.cost)
	}
}

// read carries one read of n bytes: counts what becomes of it, and answers.
func (w *egress) read(n int) {
	if n < tun.HeaderLen {
		w.c.drop(BadVirtio)
		return
	}
	p := w.buf[headroom : virtioAt+n]
	packet.DecodeVirtio(w.buf[virtioAt:], &w.v)
	r := w.parse(p)
	if r == Passed && w.v.Check(&w.h, len(p)) != nil {
		r = BadVirtio
	}
	if r == Passed && fib.Name(w.h.Src) != w.ep.addr {
		r = SpoofedSource
	}
	if r != Passed {
		w.c.drop(r)
		return
	}
	w.carry(p[:w.h.TotalLen])
}

// carry takes a packet whose bytes and source are in order to where it goes.
func (w *egress) carry(p []byte) {
	h := &w.h
	snap := w.p.fib.Load()
	from := w.p.gatewayOf(h)
	var r Reason
	switch {
	case (h.Dst == w.p.resolverAddr || h.Dst == w.p.resolverAddr6) && (w.p.resolver != nil || w.p.outside != nil):
		from = h.Dst
		r = w.toResolver(snap, p)
	case h.Dst == h.Src:
		r = SpoofedSource // a container's stack keeps what it sends itself
	case !oneHost(h.Dst, snap.Overlay()):
		r = Multicast
	case !snap.Inside(h.Dst):
		r = w.toOutside(snap, p, OutsideOverlay)
	default:
		if r = w.toOverlay(snap, p); r != Passed {
			w.refusedHere(snap, r)
		}
	}
	if r != Passed {
		w.c.drop(r)
		w.answerHere(w.ep, r, p, from)
		w.cost += paceRefusal
	}
}

// refusedHere tells that a packet of this container's goes to no other.
func (w *egress) refusedHere(snap *fib.Snapshot, r Reason) {
	tag := policy.NoTag
	if own := snap.Local(w.h.Src); own != nil {
		tag = own.Tag
	}
	w.tellRefusal(snap, r, tag)
}

// oneHost is false for multicast, reserved and broadcast addresses.
func oneHost(a netip.Addr, overlay netip.Prefix) bool {
	if a.Is6() {
		return !a.IsMulticast() && !a.IsUnspecified()
	}
	if a.As4()[0] >= 224 {
		return false
	}
	return !overlay.Contains(a) || a != lastAddr(overlay)
}

// lastAddr is the broadcast address of an IPv4 prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	a := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		a[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(a)
}

// toOverlay carries a packet inside the overlay network.
func (w *egress) toOverlay(snap *fib.Snapshot, p []byte) Reason {
	h := &w.h
	own := snap.Local(h.Src)
	if own == nil || own.Incarnation != w.ep.incarnation {
		return EndpointGone
	}
	src := localEnd(own)
	to, r := w.route(snap, src.tag)
	if r != Passed {
		return r
	}
	if h.FragmentOffset != 0 {
		return w.laterFragment(&to, p)
	}
	switch h.Proto {
	case packet.ProtoTCP, packet.ProtoUDP:
		var id uint32
		if to.peer != nil {
			id = to.peer.ID
		}
		r = w.judge(snap, &src, &to.dst, id)
	case packet.ProtoICMP, packet.ProtoICMPv6:
		r = w.judgeICMP(p, snap, to.peer)
	default:
		r = NotAllowedProtocol
	}
	if h.MoreFragments {
		return w.firstFragment(&to, p, r)
	}
	if r != Passed {
		return r
	}
	return w.forward(&to, p)
}

// route finds the destination. tag is the source app's.
func (w *egress) route(snap *fib.Snapshot, tag policy.Tag) (route, Reason) {
	local, remote, peer := snap.Lookup(w.h.Dst)
	to := route{tag: tag}
	switch {
	case local != nil:
		to.ep = w.p.device(local)
		to.dst = localEnd(local)
		if to.ep == nil {
			return to, NoEndpoint
		}
	case fib.Name(w.h.Dst) == w.p.gateway || peer != nil && isGateway(peer, w.h.Dst):
		return to, CellAddress
	case snap.Own(w.h.Dst):
		return to, NoEndpoint
	case peer == nil:
		return to, NoRoute
	case remote != nil:
		to.peer = peer
		to.dst = end{tag: remote.Tag, incarnation: remote.Incarnation, slot: flow.NoSlot}
	case peer.Kind == fib.Silk && !w.h.IPv6: // silk has no IPv6
		to.peer = peer
		to.dst = end{slot: flow.NoSlot, anyone: true}
	default:
		return to, NoEndpoint
	}
	return to, Passed
}

// forward sends the judged packet p, which lies behind the headroom in w.buf, and
// counts it. This cell is one hop.
func (w *egress) forward(to *route, p []byte) Reason {
	small := true // fits the way to the peer
	if to.peer != nil {
		w.p.used(to.peer.Link)
		var r Reason
		if small, r = w.fit(to.peer, p); r != Passed {
			return r
		}
	}
	if !packet.DecrementTTL(p) {
		return TTLExpired
	}
	var r Reason
	switch {
	case to.ep != nil:
		// The super-packet as it was read; the virtio header before it was checked.
		if w.v.GSOType != packet.GSONone {
			to.ep.given.Add(1)
		}
		r = w.write(to.ep, w.buf[virtioAt:headroom+len(p)])
	case !small:
		r = w.sealFragments(to.peer, to.tag, p, w.limit)
	case w.v.GSOType == packet.GSONone:
		packet.CompleteChecksum(p, &w.h, &w.v)
		r = w.seal(to.peer, to.tag, w.buf[:headroom+len(p)])
	default:
		r = w.sealSegments(to.peer, to.tag, p)
	}
	if r == Passed {
		w.c.pass(len(p))
	}
	return r
}

// fit holds the packet against the MTU of the way to a peer. Segments of a TCP
// super-packet may become smaller; what else is too big is fragmented, if its
// sender allows it (small is false then), and else refused: w.limit is what fits.
func (w *egress) fit(peer *fib.Peer, p []byte) (small bool, r Reason) {
	limit := w.p.wayMTU(peer)
	if limit == 0 {
		return true, Passed
	}
	w.limit = limit
	h := &w.h
	if h.TCPFlags&packet.FlagSYN != 0 {
		packet.ClampMSS(p, h, limit, w.v.Flags&packet.VirtioNeedsChecksum != 0)
	}
	headers := h.HeaderLen + h.L4Len
	length := len(p)
	if w.v.GSOType != packet.GSONone {
		length = headers + min(int(w.v.GSOSize), h.PayloadLen)
	}
	switch {
	case length <= limit:
		return true, Passed
	case w.v.GSOType != packet.GSONone && h.Proto == packet.ProtoTCP && headers < limit:
		w.v.GSOSize = uint16(limit - headers)
		if packet.Segments(h, &w.v) > packet.MaxFrames {
			return true, TooBig
		}
		return true, Passed
	case h.IPv6 && limit < minMTU6 && w.segments(p, limit-headers):
		return true, Passed
	case h.DontFragment || w.v.GSOType != packet.GSONone:
		return true, TooBig
	}
	return false, Passed
}

// segments makes a super-packet of the TCP segment p, to be split into payloads of
// size: where a way is smaller than what IPv6 promises, its sender cannot be told.
func (w *egress) segments(p []byte, size int) bool {
	h := &w.h
	if h.Proto != packet.ProtoTCP || w.v.GSOType != packet.GSONone || size <= 0 || h.IsFragment() ||
		h.TCPFlags&(packet.FlagSYN|packet.FlagRST|packet.FlagURG) != 0 ||
		w.v.Flags&packet.VirtioNeedsChecksum == 0 && !packet.VerifyChecksum(p, h) {
		return false
	}
	w.v.GSOType, w.v.GSOSize = packet.GSOTCPv6, uint16(size)
	return packet.Segments(h, &w.v) <= packet.MaxFrames
}

// wayMTU is the longest packet that gets to a peer; 0: any.
func (p *Path) wayMTU(peer *fib.Peer) int {
	found := int(peer.Link.MTU.Load())
	if found == 0 || p.mtu != 0 && p.mtu < found {
		return p.mtu
	}
	return found
}

// firstFragment forwards the fragment with the transport header, under the
// verdict r, and the later ones that came before it.
func (w *egress) firstFragment(to *route, p []byte, r Reason) Reason {
	held, fr := w.frags.first(&w.h, w.p.flows.Now(), w.verdict, r == Passed && w.recorded)
	if r != Passed {
		return r
	}
	if fr != Passed {
		return fr
	}
	r = w.forward(to, p)
	for _, b := range held {
		n := copy(w.buf[headroom:], b)
		if parse(w.buf[headroom:headroom+n], &w.h) != Passed {
			continue
		}
		if r := w.forward(to, w.buf[headroom:headroom+n]); r != Passed {
			w.c.drop(r)
		}
	}
	return r
}

// laterFragment forwards a fragment under the verdict about its first.
func (w *egress) laterFragment(to *route, p []byte) Reason {
	switch what, r := w.frags.later(&w.h, p, w.p.flows); what {
	case forwardIt:
		return w.forward(to, p)
	case holdIt:
		return Passed
	default:
		return r
	}
}
