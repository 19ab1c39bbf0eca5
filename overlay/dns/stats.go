package dns

import "sync/atomic"

// Stats is what became of the queries since New. Queries is the sum of the
// others but Retried, which counts questions asked again over TCP or of a
// further resolver, and what is still under way.
type Stats struct {
	Queries    uint64
	Answered   uint64 // a resolver's answer, whatever it said
	Internal   uint64 // names of the internal domains: SERVFAIL
	Failed     uint64 // no resolver answered, or there is none: SERVFAIL
	Refused    uint64 // zone transfers, other classes and operations
	Malformed  uint64 // FORMERR, or dropped where not even an id is there
	OverSource uint64 // dropped: too many of one container
	OverQueue  uint64 // dropped: queue full
	Late       uint64 // dropped: nobody waits for the answer any more
	Retried    uint64
}

type counters struct {
	queries, answered, internal, failed, refused, malformed, overSource, overQueue, late, retried atomic.Uint64
}

// Stats is a reading of the counters. Each is exact; together they are not
// one instant's.
func (f *Forwarder) Stats() Stats {
	c := &f.counters
	return Stats{
		Queries:    c.queries.Load(),
		Answered:   c.answered.Load(),
		Internal:   c.internal.Load(),
		Failed:     c.failed.Load(),
		Refused:    c.refused.Load(),
		Malformed:  c.malformed.Load(),
		OverSource: c.overSource.Load(),
		OverQueue:  c.overQueue.Load(),
		Late:       c.late.Load(),
		Retried:    c.retried.Load(),
	}
}
