package table

import "tulle/policy"

const (
	// slots make a shard 1016 bytes: with the allocator's 8-byte header one
	// object of 1024, its slots within cache lines.
	slots = 62
	// fill is how many keys a shard takes before it splits: three quarters, where
	// linear probing still ends after a few slots, hit or miss.
	fill = 46
)

// shard is a small hash table with linear probing. It never changes once it is
// published.
type shard struct {
	lists []spans // of the keys that have several ranges
	slots [slots]slot
}

// slot is one key with its range, or with the place of its ranges in the
// shard's lists. An empty slot's pair is 0.
type slot struct {
	pair       uint64
	start, end uint16 // the only range, where list is 0
	list       uint16 // counts from 1
	proto      policy.Protocol
}

// entry is a slot outside of any shard, as the writer carries it from one to the next.
type entry struct {
	slot
	hash   uint64
	ranges spans // where there are several; else nil
}

// home is where the probing for a hash begins.
func home(h uint64) uint { return uint(uint64(uint32(h)) * slots >> 32) }

// newShard holds the entries, at most fill of them, each key once.
func newShard(entries []entry) *shard {
	s := new(shard)
	for _, e := range entries {
		e.list = 0
		if e.ranges != nil {
			s.lists = append(s.lists, e.ranges)
			e.list = uint16(len(s.lists))
		}
		*s.find(e.hash, e.pair, e.proto) = e.slot
	}
	return s
}

// find is the slot of a key, or the empty one where it would go.
func (s *shard) find(h, pair uint64, proto policy.Protocol) *slot {
	for i := home(h); ; {
		e := &s.slots[i]
		if e.pair == 0 || e.pair == pair && e.proto == proto {
			return e
		}
		if i++; i == slots {
			i = 0
		}
	}
}

// ranges are those of a slot that find returned; none where it is empty.
func (s *shard) ranges(e *slot) spans {
	switch {
	case e.pair == 0:
		return nil
	case e.list == 0:
		return spans{{e.start, e.end, e.end}}
	}
	return s.lists[e.list-1]
}

// keys counts the slots in use.
func (s *shard) keys() (n int) {
	for i := range s.slots {
		if s.slots[i].pair != 0 {
			n++
		}
	}
	return n
}
