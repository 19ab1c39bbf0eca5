package datapath

import "sync/atomic"

// counters are one goroutine's; others read them.
type counters struct {
	packets, bytes atomic.Uint64 // passed, as IP packets or super-packets
	answers        atomic.Uint64
	limited        atomic.Uint64 // answers not sent
	paced          atomic.Uint64 // waits of a reader for its neighbours' sake
	drops          [NumReasons]atomic.Uint64
}

func (c *counters) pass(bytes int) {
	c.packets.Add(1)
	c.bytes.Add(uint64(bytes))
}

func (c *counters) drop(r Reason) { c.drops[r].Add(1) }

func (c *counters) addTo(s *Traffic) {
	s.Packets += c.packets.Load()
	s.Bytes += c.bytes.Load()
	s.Answers += c.answers.Load()
	s.AnswersLimited += c.limited.Load()
	s.Paced += c.paced.Load()
	for r := range c.drops {
		s.Drops[r] += c.drops[r].Load()
	}
}

// Traffic counts one direction since the Path was made.
type Traffic struct {
	// Packets and Bytes that passed, IP header included; a super-packet, or
	// segments joined into one, is one packet.
	Packets, Bytes uint64
	// Drops by reason.
	Drops [NumReasons]uint64
	// Answers sent to refused senders, and those that a limit held back.
	Answers, AnswersLimited uint64
	// Paced counts how often a container was held back for its neighbours' sake.
	Paced uint64
}

// Stats is a reading of all counters.
type Stats struct {
	// Egress counts packets that containers sent, also to each other; Ingress
	// those that came from peers. Among the drops of Ingress is also what came from
	// outside the overlay, or from the resolver, and was not taken by its device.
	Egress, Ingress Traffic
	Flows           int
	// FlowsCut counts flows ended because a policy, an endpoint or a peer went.
	FlowsCut uint64
}

// Stats reads the counters. It may be called from any goroutine.
func (p *Path) Stats() Stats {
	p.mu.Lock()
	s := Stats{Egress: p.retired}
	for _, ep := range p.attached {
		ep.w.c.addTo(&s.Egress)
	}
	p.mu.Unlock()
	p.in.c.addTo(&s.Ingress)
	p.inside.c.addTo(&s.Ingress)
	p.undelivered.addTo(&s.Ingress)
	s.Flows = p.flows.Len()
	s.FlowsCut = p.cut.Load()
	return s
}

// FlowCount is the number of flows.
func (p *Path) FlowCount() int { return p.flows.Len() }
