package datapath

import (
	"net/netip"
	"sync/atomic"

	"tulle/overlay/fib"
	"tulle/overlay/flow"
	"tulle/overlay/packet"
	"tulle/overlay/ring"
	"tulle/policy"
)

// Told is a verdict between containers: that a flow begins, or that a packet is
// refused.
type Told struct {
	Src, Dst         netip.Addr
	SrcPort, DstPort uint16
	Proto            uint8
	ICMPType         uint8
	ICMPCode         uint8
	Tag              policy.Tag // the source's app's; NoTag: not known
	Reason           Reason     // Passed: the flow was allowed
	// Ingress: the destination is of this cell.
	Ingress bool
}

// toldRoom is how many verdicts wait for whoever takes them.
const toldRoom = 4096

// Verdicts gathers verdicts from the goroutines that judge, who wait for nobody: what
// there is no room for is counted and lost. One goroutine at a time takes.
type Verdicts struct {
	allowed, denied bool
	ring            *ring.Ring[Told]
	lost            atomic.Uint64
}

// NewVerdicts makes one for flows that begin, for refusals, or for both.
func NewVerdicts(allowed, denied bool) *Verdicts {
	return &Verdicts{allowed: allowed, denied: denied, ring: ring.New[Told](toldRoom)}
}

// Take copies the oldest out; false: there is none now.
func (v *Verdicts) Take(t *Told) bool { return v.ring.Take(t) }

// Lost counts those that had no room.
func (v *Verdicts) Lost() uint64 { return v.lost.Load() }

func (v *Verdicts) put(t *Told) {
	if !v.ring.Put(t) {
		v.lost.Add(1)
	}
}

// Tell has verdicts gathered in v from now on; nil: nowhere. A flow is told where its
// destination is, and a packet where it is refused.
func (p *Path) Tell(v *Verdicts) { p.verdicts.Store(v) }

// tellFlow is called with a flow that has just been recorded.
func (w *worker) tellFlow() {
	v := w.p.verdicts.Load()
	if v == nil || !v.allowed {
		return
	}
	f := &w.flow
	if f.Role&flow.DestinationHere == 0 {
		return
	}
	w.told = Told{Src: f.Src, Dst: f.Dst, SrcPort: f.SrcPort, DstPort: f.DstPort, Proto: f.Proto, Tag: f.SrcTag, Ingress: true}
	v.put(&w.told)
}

// tellRefusal is called with a packet between containers that was dropped, as it
// lies in w.h.
func (w *worker) tellRefusal(snap *fib.Snapshot, r Reason, tag policy.Tag) {
	v := w.p.verdicts.Load()
	if v == nil || !v.denied || !refusals[r] {
		return
	}
	h := &w.h
	w.told = Told{Src: h.Src, Dst: h.Dst, Proto: h.Proto, Tag: tag, Reason: r, Ingress: snap.Own(h.Dst)}
	switch h.Proto {
	case packet.ProtoTCP, packet.ProtoUDP:
		w.told.SrcPort, w.told.DstPort = h.SrcPort, h.DstPort
	case packet.ProtoICMP, packet.ProtoICMPv6:
		w.told.ICMPType, w.told.ICMPCode = h.ICMPType, h.ICMPCode
	}
	v.put(&w.told)
}

// refusals are the reasons that say that somebody may not reach somebody. The others
// are faults of packets and peers, which have their counters.
var refusals = [NumReasons]bool{
	CellAddress: true, NoRoute: true, NoEndpoint: true,
	NoPolicy: true, NoIdentity: true, NotAllowedProtocol: true, ICMPDenied: true,
	FlowsFull: true, EndpointFlowsFull: true,
}
