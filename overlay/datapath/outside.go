package datapath

import (
	"net/netip"

	"tulle/overlay/fib"
)

// toOutside hands a packet to whoever carries what leaves the overlay; r is the
// reason to refuse it where nobody does.
func (w *egress) toOutside(snap *fib.Snapshot, p []byte, r Reason) Reason {
	if w.p.outside == nil {
		return r
	}
	own := snap.Local(w.h.Src)
	if own == nil || own.Incarnation != w.ep.incarnation {
		return EndpointGone
	}
	if !w.p.outside.Carry(own, &w.h, &w.v, p) {
		return r
	}
	w.c.pass(len(p))
	return Passed
}

// Deliver writes a container's device: a virtio header and a packet, in pieces
// that are the caller's again when it returns. It is for what comes from outside
// the overlay; nothing here judges it. Without such a container nothing happens,
// and the reason is NoEndpoint. What the device does not take is counted.
func (p *Path) Deliver(to netip.Addr, incarnation uint64, pieces ...[]byte) Reason {
	local := p.fib.Load().Local(to)
	if local == nil || local.Incarnation != incarnation {
		return NoEndpoint
	}
	e := p.device(local)
	if e == nil {
		return NoEndpoint
	}
	r := written(e.dev.Write(pieces...))
	if r != Passed {
		p.undelivered.drop(r)
	}
	return r
}
