package dns

import "sync/atomic"

// Stats is what became of the queries since New. Queries is the sum of the
// others but Retried, which counts questions asked again over TCP or of a
// further resolver, and Prohibited, and what is still under way.
type Stats struct {
	Queries    uint64
	Answered   uint64 // a resolver's answer, whatever it said
	Internal   uint64 // internal names and addresses, answered here
	Cached     uint64 // what a resolver had answered before
	Rebinding  uint64 // a resolver's answer that led to a container: NXDOMAIN
	Failed     uint64 // no resolver answered, or there is none: SERVFAIL
	Refused    uint64 // zone transfers, other classes and operations
	Malformed  uint64 // FORMERR, or dropped where not even an id is there
	OverSource uint64 // dropped: too many of one container
	OverQueue  uint64 // dropped: queue full
	Late       uint64 // dropped: nobody waits for the answer any more
	Retried    uint64
	Prohibited uint64 // of Internal: told which policy is missing
}

type counters struct {
	queries, answered, internal, failed, refused, malformed, overSource, overQueue, late, retried, cached, rebinding, prohibited atomic.Uint64
}

// Stats is a reading of the counters. Each is exact; together they are not
// one instant's.
func (r *Resolver) Stats() Stats {
	c := &r.counters
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
		Cached:     c.cached.Load(),
		Rebinding:  c.rebinding.Load(),
		Prohibited: c.prohibited.Load(),
	}
}
