package datapath

import (
	"sync"

	"tulle/overlay/fib"
	"tulle/overlay/packet"
	"tulle/overlay/udp"
	"tulle/overlay/vxlan"
	"tulle/policy"
)

// This is the one place where a packet becomes a peer's frame, and where a frame
// becomes a peer's packet again; each mode that a peer may have is a case here.

// seal sends the packet behind the headroom of b to a peer. b is rewritten.
func (w *worker) seal(peer *fib.Peer, tag policy.Tag, b []byte) Reason {
	w.header(peer, tag, b[headroom:])
	w.frame.Encode(b)
	return w.send(peer, b)
}

// trains are room for what one call sends, for whoever is about to: a reader has none of
// its own, of hundreds few send in bulk at a time.
var trains = sync.Pool{New: func() any { return new([udp.MaxSend]byte) }}

// sealSegments splits the super-packet p, parsed and checked into w.h and w.v,
// straight into frames of equal length and sends them, as many as one call takes.
// The frames of a tunnel lie with the room around them that it needs.
func (w *worker) sealSegments(peer *fib.Peer, tag policy.Tag, p []byte) Reason {
	if !w.reachable(peer) {
		return WrongMode
	}
	w.header(peer, tag, p)
	n := packet.Segments(&w.h, &w.v)
	frame := headroom + w.h.HeaderLen + w.h.L4Len + min(int(w.v.GSOSize), w.h.PayloadLen)
	before, stride, after := 0, frame, 0
	if peer.Mode == fib.WireGuard {
		before, stride, after = w.p.tunnel.Room(frame)
	}
	most := min(udp.MaxSegments, (udp.MaxSend-before-after)/stride)
	if most == 0 {
		return TooBig
	}
	frames := trains.Get().(*[udp.MaxSend]byte)
	defer trains.Put(frames)
	for i := 0; i < n; {
		length := 0
		for at, last := before, min(i+most, n); i < last; i++ {
			w.frame.Encode(frames[at:])
			length = at + headroom + packet.Split(frames[at+headroom:], p, &w.h, &w.v, i)
			at += stride
		}
		if r := w.sendTrain(peer, frames[:length], frame); r != Passed {
			return r
		}
	}
	return Passed
}

// sealFragments sends the packet p, longer than mtu, in fragments.
func (w *worker) sealFragments(peer *fib.Peer, tag policy.Tag, p []byte, mtu int) Reason {
	packet.CompleteChecksum(p, &w.h, &w.v)
	w.header(peer, tag, p)
	frames := trains.Get().(*[udp.MaxSend]byte)
	defer trains.Put(frames)
	for at := 0; at < len(p)-w.h.HeaderLen; {
		n, next := packet.Fragment(frames[headroom:], p, &w.h, mtu, at)
		if n == 0 {
			return TooBig
		}
		w.frame.Encode(frames[:])
		if r := w.send(peer, frames[:headroom+n]); r != Passed {
			return r
		}
		at = next
	}
	return Passed
}

// reachable says whether the peer's mode is one that this cell has.
func (w *worker) reachable(peer *fib.Peer) bool {
	return peer.Mode == fib.VXLAN || peer.Mode == fib.WireGuard && w.p.tunnel != nil && peer.Tunnel.IsValid()
}

// send is one frame to a peer, in the peer's mode and in no other. Of what goes by
// VXLAN the outer header has the packet's congestion bits (RFC 6040 section 4.1); in a
// tunnel of WireGuard's it has none, which that RFC calls compatibility mode: a router
// then drops where it would have marked.
func (w *worker) send(peer *fib.Peer, b []byte) Reason {
	switch {
	case !w.reachable(peer):
		return WrongMode
	case peer.Mode == fib.VXLAN:
		return sent(w.conn().SendECN(peer.Underlay, b, 0, uint8(w.ecn)))
	}
	return sent(w.p.tunnel.Send(peer.Tunnel, w.hash, b, 0))
}

// sendTrain is send for frames of that length in a row, the last what is left.
func (w *worker) sendTrain(peer *fib.Peer, b []byte, frame int) Reason {
	if peer.Mode == fib.WireGuard {
		return sent(w.p.tunnel.SendTrain(peer.Tunnel, w.hash, b, frame))
	}
	conn := w.conn()
	err := conn.SendECN(peer.Underlay, b, frame, uint8(w.ecn))
	if err == udp.ErrMessageSize && frame < len(b) {
		// The kernel was told of a smaller path. Single frames it fragments.
		for err = nil; err == nil && len(b) > 0; b = b[min(frame, len(b)):] {
			err = conn.SendECN(peer.Underlay, b[:min(frame, len(b))], 0, uint8(w.ecn))
		}
	}
	return sent(err)
}

// conn is the socket that the flow of the packet at hand goes from.
func (w *worker) conn() udp.Conn { return w.p.conns[w.hash%uint32(len(w.p.conns))] }

// sent is what became of what was given to a socket.
func sent(err error) Reason {
	switch err {
	case nil:
		return Passed
	case udp.ErrMessageSize:
		return TooBig
	default:
		return SendError
	}
}

// header fills w.frame for a peer's packet, and what the outer header takes from it.
func (w *worker) header(peer *fib.Peer, tag policy.Tag, p []byte) {
	if tag > policy.MaxTag {
		tag = policy.NoTag
	}
	w.frame = vxlan.Frame{
		GroupID: uint16(tag), VNI: w.p.vni,
		DstMAC: vxlan.MACFor(peer.Gateway()), SrcMAC: w.p.mac, IPv6: p[0]>>4 == 6,
	}
	w.ecn, w.hash = packet.ECNOf(p), packet.FlowHash(p)
}

// open takes a peer's frame apart: the packet in it, parsed into w.h, and the tag
// it came with. Of the mode that the control plane gave the peer the frame must
// be: a plain one from a peer that has a tunnel is anybody's who can write its
// address.
func (w *worker) open(peer *fib.Peer, mode fib.Mode, b []byte) ([]byte, policy.Tag, Reason) {
	if peer.Mode != mode {
		return nil, 0, WrongMode
	}
	inner, err := vxlan.Decode(b, &w.frame)
	if err != nil {
		return nil, 0, BadFrame
	}
	switch {
	case w.frame.VNI != w.p.vni:
		return nil, 0, WrongVNI
	case w.frame.DstMAC != w.p.mac:
		return nil, 0, WrongMAC
	}
	if r := w.parse(inner); r != Passed {
		return nil, 0, r
	}
	if w.h.IPv6 != w.frame.IPv6 || w.h.IPv6 && peer.Kind == fib.Silk {
		return nil, 0, BadFrame
	}
	// What lies behind the packet is Ethernet's padding.
	return inner[:w.h.TotalLen], policy.Tag(w.frame.GroupID), Passed
}
