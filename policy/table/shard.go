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
	fill = 72
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

// ports is a port range in one word: its start above its length. 0 holds no
// port; a rule's start is at least 1, so the length fits.
type ports uint32

func portsOf(r policy.PortRange) ports {
	return ports(r.Start)<<16 | ports(r.End-r.Start+1)
}

func (p ports) domain() policy.PortRange {
	return policy.PortRange{Start: uint16(p >> 16), End: uint16(p>>16 + p - 1)}
}

func (p ports) contains(port uint16) bool {
	// A port below start wraps around to more than any length.
	return uint32(port)-uint32(p>>16) < uint32(p&0xFFFF)
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

// walk is Lookup where a bucket runs over or a key has a list.
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
