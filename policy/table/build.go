package table

import (
	"math/bits"

	"tulle/policy"
)

// entry is one key with its ranges outside of any shard, as the writer carries
// it from one to the next: of those that a shard may have, its hash tells which.
type entry struct {
	hash uint64
	one  policy.PortRange // the only one, where list is nil
	list spans
}

// gather appends the entries of s, but for the one of the hash skip. Lists stay
// where they are, in s.
func (s shard) gather(into []entry, skip uint64) []entry {
	for at := 0; ; at++ {
		b := s.bucket(at)
		for i, slot := range b[:how] {
			if slot == 0 || slot.hash() == skip {
				continue
			}
			e := entry{hash: slot.hash()}
			if b.hasList(i) {
				e.list = s.list(slot.at()).spans()
			} else {
				e.one = slot.ports()
			}
			into = append(into, e)
		}
		if at >= 1<<s.depth() && b[how]&runsOver == 0 {
			return into
		}
	}
}

// ranges are those of a hash, none where it is not there.
func (s shard) ranges(hash uint64) spans {
	b, i := s.find(hash)
	switch {
	case b == nil:
		return nil
	case b.hasList(i):
		return s.list(b[i].at()).spans()
	}
	r := b[i].ports()
	return spans{{r.Start, r.End, r.End}}
}

// depthFor gives n keys between 1.25 and 2.5 to a bucket.
func depthFor(n int) int { return bits.Len(uint(n) * 2 / 5) }

// deep is the depth from where on some bucket runs over in any case.
const deep = 8

// build makes a shard of entries, each key once. One in 30 has a bucket that would
// run over, and is given twice as many, so that few keys are in such buckets at all.
// A million rules then take less than 40 MiB.
func build(entries []entry) shard {
	if len(entries) == 0 {
		return nothing
	}
	spans := 0
	for i := range entries {
		if list := entries[i].list; list != nil {
			spans += 1 + len(list)
		}
	}
	depth := depthFor(len(entries))
	if depth < deep {
		for _, depth := range []int{depth, depth + 1} {
			if s, ok := fill(entries, depth, 0, spans); ok {
				return s
			}
		}
	}
	for more := 1; ; more++ {
		if s, ok := fill(entries, depth, more, spans); ok {
			return s
		}
	}
}

// fill is build with 1<<depth buckets, one and so many more than those where a
// search begins. It fails where the last of all would run over, or any where there
// are no more.
func fill(entries []entry, depth, more, spans int) (s shard, ok bool) {
	n := 1<<depth + 1 + more
	free := uint32(n * lineSize / wordSize) // where the next list goes
	s = newShard(depth, more, spans)
	for i := range entries {
		e := &entries[i]
		b := s.home(e.hash)
		slot := b.free()
		for ; slot < 0; slot = b.free() {
			if b[how] |= odd | runsOver; more == 0 || b == s.bucket(n-1) {
				return s, false
			}
			b = b.next()
		}
		if e.list == nil {
			b[slot] = slotOf(e.hash, e.one)
			continue
		}
		b[how] |= odd | list0<<slot
		b[slot] = listAt(e.hash, free)
		free += uint32(s.list(free).put(e.list))
	}
	for i := range n {
		s.bucket(i).sort()
	}
	return s, true
}
