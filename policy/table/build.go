package table

import "math/bits"

// entry is one key with its ranges outside of any shard, as the writer carries
// it from one to the next.
type entry struct {
	key  uint64
	one  ports // the only range, where list is nil
	list spans
}

// gather appends the entries of s, but for the one of the key skip. Lists stay
// where they are, in s.
func (s shard) gather(into []entry, skip uint64) []entry {
	for at := 0; ; at++ {
		b := s.bucket(at)
		for i, key := range b.keys {
			if key == 0 || key == skip {
				continue
			}
			e := entry{key: key, one: b.ranges[i]}
			if b.hasList(i) {
				e.list = s.list(b.ranges[i]).spans()
			}
			into = append(into, e)
		}
		if at+1 >= 1<<s.depth() && b.how&runsOver == 0 {
			return into
		}
	}
}

// ranges are those of a key, none where it is not there.
func (s shard) ranges(key uint64) spans {
	b, i := s.find(key)
	switch {
	case b == nil:
		return nil
	case b.hasList(i):
		return s.list(b.ranges[i]).spans()
	}
	r := b.ranges[i].domain()
	return spans{{r.Start, r.End, r.End}}
}

// depthFor gives n keys between 0.9 and 1.8 to a bucket, of which one in a hundred
// or fewer is in a bucket that runs over. A million rules then take less than
// 60 MiB.
func depthFor(n int) int { return bits.Len(uint(n) * 9 / 16) }

// build makes a shard of entries, each key once.
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
	for more := 0; ; more++ {
		if s, ok := fill(entries, more, spans); ok {
			return s
		}
	}
}

// fill is build with so many buckets more than those where a search begins. It
// fails where the last of all would run over.
func fill(entries []entry, more, spans int) (s shard, ok bool) {
	depth := depthFor(len(entries))
	n := 1<<depth + more
	free := ports(n * lineSize / wordSize) // where the next list goes
	s = newShard(depth, more, spans)
	for i := range entries {
		e := &entries[i]
		b := s.home(below(e.key))
		slot := b.find(0)
		for ; slot < 0; slot = b.find(0) {
			if b.how |= runsOver; b == s.bucket(n-1) {
				return s, false
			}
			b = b.next()
		}
		b.keys[slot], b.ranges[slot] = e.key, e.one
		if e.list != nil {
			b.how |= odd << slot
			b.ranges[slot] = free
			free += ports(s.list(free).put(e.list))
		}
	}
	for i := range n {
		s.bucket(i).sort()
	}
	return s, true
}
