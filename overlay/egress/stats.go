package egress

import "sync/atomic"

// counters of the whole cell.
type counters struct {
	verdicts       [numVerdicts]atomic.Uint64
	open           atomic.Int64
	cut, failed    atomic.Uint64
	tcp, udp, icmp atomic.Uint64
}

func (c *counters) begun(protocol string) {
	switch protocol {
	case "tcp":
		c.tcp.Add(1)
	case "udp":
		c.udp.Add(1)
	case "icmp":
		c.icmp.Add(1)
	}
}

// Stats is a reading of the counters.
type Stats struct {
	// Open conversations, forwards' included.
	Open int
	// Conversations with the outside that were begun, by protocol.
	Begun map[string]uint64
	// Verdicts, by name.
	Verdicts map[string]uint64
	// Cut conversations: those that a change of rules or surroundings ended.
	Cut uint64
	// Failed: allowed, but the outside did not answer or refused.
	Failed   uint64
	Forwards int
}

// Stats reads the counters.
func (e *Egress) Stats() Stats {
	s := Stats{
		Open: int(e.counts.open.Load()), Cut: e.counts.cut.Load(), Failed: e.counts.failed.Load(),
		Begun:    map[string]uint64{"tcp": e.counts.tcp.Load(), "udp": e.counts.udp.Load(), "icmp": e.counts.icmp.Load()},
		Verdicts: map[string]uint64{}, Forwards: len(e.Forwards()),
	}
	for v := range e.counts.verdicts {
		s.Verdicts[Verdict(v).String()] = e.counts.verdicts[v].Load()
	}
	return s
}
