package datapath

import (
	"tulle/overlay/flow"
	"tulle/overlay/packet"
	"tulle/overlay/shape"
	"tulle/overlay/tun"
	"tulle/overlay/vxlan"
)

// headroom is what lies before a packet in every buffer here: room for the
// headers of the tunnel, or for a virtio header right before the packet. So a
// packet goes either way from where it was read or built.
const (
	headroom = vxlan.Overhead
	virtioAt = headroom - tun.HeaderLen
)

// worker is the scratch of one goroutine. What the stages fill lies here and not
// on their stacks, from where the calls through interfaces would move it to the heap.
type worker struct {
	p *Path
	c counters

	h, quoted packet.Header
	v         packet.Virtio
	frame     vxlan.Frame
	ecn       packet.ECN // of the packet that frame is for
	hash      uint32     // of its flow
	key       flow.Key
	flow      flow.Flow
	seg       flow.Segment
	// found says that the last lookup, of foundKey, filled flow and told way.
	found    bool
	foundKey flow.Key
	way      flow.Direction
	// verdict is the record under which the last packet passed; recorded says that
	// there is one.
	verdict  flow.Ref
	recorded bool
	// limit is the MTU that the last packet was too big for.
	limit int
	// told is the verdict that is just being told.
	told Told
	// cost is what the last packet cost, in units of pace.
	cost int

	answer [headroom + packet.MaxAnswer]byte // one answer, its packet behind the headroom
	piece  [1][]byte
}

func newWorker(p *Path) *worker {
	return &worker{p: p}
}

// write gives a device b, a virtio header and a packet, in one piece.
func (w *worker) write(e *endpoint, b []byte) Reason {
	w.piece[0] = b
	err := e.dev.Write(w.piece[:]...)
	w.piece[0] = nil
	return written(err)
}

// written is what became of a packet that was given to a device.
func written(err error) Reason {
	switch err {
	case nil:
		return Passed
	case shape.ErrQueue:
		return Bandwidth
	default:
		return DeviceWrite
	}
}

// parse reads a packet's headers into w.h.
func (w *worker) parse(b []byte) Reason {
	r := parse(b, &w.h)
	if r == Passed && w.h.IPv6 && w.p.only4 {
		return NotIP
	}
	return r
}

// parse is packet.Parse with the error as a reason.
func parse(b []byte, h *packet.Header) Reason {
	switch err := packet.Parse(b, h); err {
	case nil:
	case packet.ErrVersion:
		return NotIP
	case packet.ErrFragment:
		return TinyFragment
	case packet.ErrTransport:
		if h.MoreFragments {
			return TinyFragment
		}
		return BadPacket
	default:
		return BadPacket
	}
	if h.SourceRoute {
		return SourceRoute
	}
	return Passed
}
