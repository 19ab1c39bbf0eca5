package table

import "tulle/policy"

const (
	// bucketSlots make a bucket one cache line.
	bucketSlots = 5
	// buckets make a shard 2040 bytes: with the allocator's 8-byte header one
	// object of 2048, its buckets on cache lines.
	buckets = 31
	// fill is how many keys a shard takes before it splits. It leaves room, so
	// that few buckets run over.
	fill = 90
)

// shard is a small hash table of buckets. It never changes once it is published.
type shard struct {
	lists   []spans // of the keys that have several ranges
	_       [32]byte
	buckets [buckets]bucket
}

// bucket holds the keys whose hash begins there. Where they are more than its
// slots it runs over, and the next bucket has the rest.
type bucket struct {
	pairs  [bucketSlots]uint64 // 0: empty
	ranges [bucketSlots]ports  // for a slot whose bit is set in odd: place in the shard's lists
	odd    uint32              // a bit for each slot that has a list, and runsOver
}

const runsOver = 1 << 31

// ports is a port range in one word: start above end.
type ports uint32

// noPort is a range that holds no port, not even 0.
const noPort ports = 0xFFFF << 16

func portsOf(r policy.PortRange) ports { return ports(r.Start)<<16 | ports(r.End) }

func (p ports) domain() policy.PortRange {
	return policy.PortRange{Start: uint16(p >> 16), End: uint16(p)}
}

// contains takes no branch: neither difference may be negative.
func (p ports) contains(port uint16) bool {
	start, end := int64(p>>16), int64(p&0xFFFF)
	return (int64(port)-start)|(end-int64(port)) >= 0
}

// entry is one key with its ranges outside of any shard, as the writer carries
// it from one to the next.
type entry struct {
	hash, pair uint64
	one        ports // the only range, where list is nil
	list       spans
}

// home is the bucket where the search for a hash begins.
func home(h uint64) uint { return uint(uint64(uint32(h)) * buckets >> 32) }

// allowed reports whether the shard lets pair pass on port. Which slot matches,
// or whether one does, decides no branch (the ifs become conditional moves): a
// branch would wait for the cache line, and where the processor guesses it wrong
// it cannot have begun with the next lookup meanwhile.
func (s *shard) allowed(h, pair uint64, port uint16) bool {
	b := &s.buckets[home(h)]
	if b.odd != 0 {
		return s.walk(h, pair, port)
	}
	found := noPort
	r0, r1, r2, r3, r4 := b.ranges[0], b.ranges[1], b.ranges[2], b.ranges[3], b.ranges[4]
	if b.pairs[0] == pair {
		found = r0
	}
	if b.pairs[1] == pair {
		found = r1
	}
	if b.pairs[2] == pair {
		found = r2
	}
	if b.pairs[3] == pair {
		found = r3
	}
	if b.pairs[4] == pair {
		found = r4
	}
	return found.contains(port)
}

// walk is allowed where a bucket runs over or a key has a list.
func (s *shard) walk(h, pair uint64, port uint16) bool {
	b, i := s.find(h, pair)
	if b == nil {
		return false
	}
	if b.odd>>i&1 != 0 {
		return s.lists[b.ranges[i]].contains(port)
	}
	return b.ranges[i].contains(port)
}

// find is where a key is; without it, nil.
func (s *shard) find(h, pair uint64) (*bucket, int) {
	for at := home(h); ; {
		b := &s.buckets[at]
		for i := range b.pairs {
			if b.pairs[i] == pair {
				return b, i
			}
		}
		if b.odd&runsOver == 0 {
			return nil, 0
		}
		if at++; at == buckets {
			at = 0
		}
	}
}

// newShard holds the entries, at most fill of them, each key once.
func newShard(entries []entry) *shard {
	s := new(shard)
	for i := range entries {
		s.put(&entries[i])
	}
	return s
}

// put places a key that is not there yet into a shard that nobody else has seen.
func (s *shard) put(e *entry) {
	for at := home(e.hash); ; {
		b := &s.buckets[at]
		for i := range b.pairs {
			if b.pairs[i] != 0 {
				continue
			}
			b.pairs[i], b.ranges[i] = e.pair, e.one
			if e.list != nil {
				b.ranges[i] = ports(len(s.lists))
				b.odd |= 1 << i
				s.lists = append(s.lists, e.list)
			}
			return
		}
		b.odd |= runsOver
		if at++; at == buckets {
			at = 0
		}
	}
}

// spans are the ranges of the key at slot i of b.
func (s *shard) spans(b *bucket, i int) spans {
	if b.odd>>i&1 != 0 {
		return s.lists[b.ranges[i]]
	}
	r := b.ranges[i].domain()
	return spans{{r.Start, r.End, r.End}}
}

// keys counts the slots in use.
func (s *shard) keys() (n int) {
	for at := range s.buckets {
		for _, pair := range s.buckets[at].pairs {
			if pair != 0 {
				n++
			}
		}
	}
	return n
}
