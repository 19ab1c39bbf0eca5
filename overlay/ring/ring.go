// Package ring is a bounded queue from many goroutines to one. Who puts neither
// waits nor allocates: where there is no room left it learns that, and goes on.
//
// It is for what goroutines on a packet's way have to tell others.
package ring

import (
	"math/bits"
	"sync/atomic"
)

// Ring is made by New. Any goroutine may put, one at a time may take.
type Ring[T any] struct {
	slots []slot[T]
	mask  uint64
	_     [64]byte // puts and takes each have a line of the cache of their own
	put   atomic.Uint64
	_     [64]byte
	taken uint64
}

// slot's turn says whose it is: a put's of that number, or, one higher, the take's
// that follows it.
type slot[T any] struct {
	turn atomic.Uint64
	v    T
}

// New makes a ring for at least n values.
func New[T any](n int) *Ring[T] {
	n = 1 << bits.Len(uint(max(n, 2)-1))
	r := &Ring[T]{slots: make([]slot[T], n), mask: uint64(n - 1)}
	for i := range r.slots {
		r.slots[i].turn.Store(uint64(i))
	}
	return r
}

// Put copies v in. false: there is no room.
func (r *Ring[T]) Put(v *T) bool {
	for {
		at := r.put.Load()
		s := &r.slots[at&r.mask]
		turn := s.turn.Load()
		switch {
		case turn == at:
			if r.put.CompareAndSwap(at, at+1) {
				s.v = *v
				s.turn.Store(at + 1)
				return true
			}
		case turn < at:
			return false // what was put a round ago is still there
		}
	}
}

// Take copies the oldest out. false: there is none, or it is just being put.
func (r *Ring[T]) Take(v *T) bool {
	s := &r.slots[r.taken&r.mask]
	if s.turn.Load() != r.taken+1 {
		return false
	}
	*v = s.v
	var none T
	s.v = none
	s.turn.Store(r.taken + r.mask + 1)
	r.taken++
	return true
}
