package flow

import (
	"sync"
	"sync/atomic"
)

const (
	chunkSize = 64

	// Entries of the index: 0, 1, or the upper half a hash and the lower a
	// record's number plus firstNumber.
	empty       = 0
	removed     = 1
	firstNumber = 2
	hashMask    = 0xffffffff << 32

	firstIndex = 64
)

type chunk [chunkSize]record

// resting is a removed record's number that must not be used again yet.
type resting struct {
	number uint32
	since  uint32
}

// shard is a part of the table: records in chunks that never move, and an index
// with linear probing that is replaced whole when it grows. A reader that still
// has the former index finds in it whatever was there when it loaded it.
type shard struct {
	chunks []atomic.Pointer[chunk]
	index  atomic.Pointer[[]atomic.Uint64]
	used   atomic.Uint32 // numbers given out so far

	mu    sync.Mutex // guards writing of the above, and what follows
	live  int        // entries of the index
	dead  int        // removed entries of the index
	limit uint32
	free  []resting         // oldest first, from freed on
	freed int               // entries of free taken already
	pairs map[uint64]uint32 // first number of a tag pair, plus one
}

func (s *shard) init(limit int) {
	s.limit = uint32(limit)
	s.chunks = make([]atomic.Pointer[chunk], (limit+chunkSize-1)/chunkSize)
	index := make([]atomic.Uint64, firstIndex)
	s.index.Store(&index)
	s.pairs = make(map[uint64]uint32)
}

func (s *shard) record(number uint32) *record {
	return &s.chunks[number/chunkSize].Load()[number%chunkSize]
}

// take gives out a record's number. The caller holds the lock.
func (s *shard) take(now uint32) (uint32, bool) {
	// Who removed it may have seen a later tick than the caller.
	if s.freed < len(s.free) && int32(now-s.free[s.freed].since) >= rest {
		number := s.free[s.freed].number
		s.freed++
		if s.freed == len(s.free) {
			s.free, s.freed = s.free[:0], 0
		} else if s.freed >= 1024 && s.freed*2 >= len(s.free) {
			s.free = s.free[:copy(s.free, s.free[s.freed:])]
			s.freed = 0
		}
		return number, true
	}
	number := s.used.Load()
	if number == s.limit {
		return 0, false
	}
	if number%chunkSize == 0 {
		s.chunks[number/chunkSize].Store(new(chunk))
	}
	s.used.Store(number + 1)
	return number, true
}

// find is the number of the record that names n. The caller holds the lock.
func (s *shard) find(h uint64, n *name) (uint32, bool) {
	index := *s.index.Load()
	mask := uint64(len(index) - 1)
	for i := h & mask; ; i = (i + 1) & mask {
		e := index[i].Load()
		if e == empty {
			return 0, false
		}
		if e == removed || e&hashMask != h<<32 {
			continue
		}
		number := uint32(e) - firstNumber
		if _, ok := s.record(number).matches(n); ok {
			return number, true
		}
	}
}

// put enters a number into the index. The caller holds the lock.
func (s *shard) put(h uint64, number uint32) {
	index := *s.index.Load()
	if (s.live+s.dead+1)*4 > len(index)*3 {
		index = s.rebuild(index)
	}
	s.live++
	s.place(index, h, number)
}

func (s *shard) place(index []atomic.Uint64, h uint64, number uint32) {
	mask := uint64(len(index) - 1)
	for i := h & mask; ; i = (i + 1) & mask {
		e := index[i].Load()
		if e == empty || e == removed {
			if e == removed {
				s.dead--
			}
			index[i].Store(h<<32 | uint64(number+firstNumber))
			return
		}
	}
}

// rebuild makes the index that comes next: larger if it is full of flows, else
// only without the removed.
func (s *shard) rebuild(old []atomic.Uint64) []atomic.Uint64 {
	size := len(old)
	if (s.live+1)*2 > size {
		size *= 2
	}
	next := make([]atomic.Uint64, size)
	s.dead = 0
	for i := range old {
		e := old[i].Load()
		if e == empty || e == removed {
			continue
		}
		// The low half of the hash is all that the place depends on, up to 2^32.
		s.place(next, e>>32, uint32(e)-firstNumber)
	}
	s.index.Store(&next)
	return next
}

// drop takes a number out of the index. The caller holds the lock.
func (s *shard) drop(h uint64, number uint32) {
	index := *s.index.Load()
	mask := uint64(len(index) - 1)
	for i := h & mask; ; i = (i + 1) & mask {
		if index[i].Load() == h<<32|uint64(number+firstNumber) {
			index[i].Store(removed)
			s.live--
			s.dead++
			return
		}
	}
}

// link and unlink keep the flows of a tag pair in a list.
func (s *shard) link(number uint32, r *record) {
	pair := r.tags.Load()
	first := s.pairs[pair]
	r.pairPrev, r.pairNext = 0, first
	if first != 0 {
		s.record(first - 1).pairPrev = number + 1
	}
	s.pairs[pair] = number + 1
}

func (s *shard) unlink(number uint32, r *record) {
	if r.pairNext != 0 {
		s.record(r.pairNext - 1).pairPrev = r.pairPrev
	}
	switch {
	case r.pairPrev != 0:
		s.record(r.pairPrev - 1).pairNext = r.pairNext
	case r.pairNext != 0:
		s.pairs[r.tags.Load()] = r.pairNext
	default:
		delete(s.pairs, r.tags.Load())
	}
}

// pair appends the numbers of a tag pair's flows.
func (s *shard) pair(numbers []uint32, pair uint64) []uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := s.pairs[pair]; n != 0; {
		numbers = append(numbers, n-1)
		n = s.record(n - 1).pairNext
	}
	return numbers
}

func (r *record) hash(seed *[3]uint64) uint64 {
	ports := r.ports.Load()
	n := name{
		srcHi: r.srcHi.Load(), srcLo: r.srcLo.Load(), dstHi: r.dstHi.Load(), dstLo: r.dstLo.Load(),
		srcPort: ports >> 48, dstPort: ports >> 32 & 0xffff, proto: ports >> 24 & 0xff,
	}
	return n.hash(seed)
}
