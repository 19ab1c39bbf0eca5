package table

import "tulle/policy"

// bucketSlots and one word more make a bucket one cache line.
const (
	bucketSlots = 7
	lineSize    = 64
)

// bucket holds the keys whose hash leads to it. Where they are more than its slots
// it runs over, and the next bucket has the rest. Behind the slots is how they are
// to be searched, see odd.
type bucket [bucketSlots + 1]slot

var _ [lineSize]byte = [(bucketSlots + 1) * 8]byte{}

const how = bucketSlots

// How is less than odd, and then a factor, in a bucket where each key is in the
// slot that home names for it and has one range. Others are searched; they are odd,
// and list<<i where slot i has a list.
//
// As a slot a factor has the hash 0, which is at home in slot 0 under any factor: so
// it answers for none.
const (
	odd      = 1 << 63
	runsOver = 1 << 62
	list0    = 1 << 32
	factors  = 1 << 31
)

func (b *bucket) hasList(i int) bool { return b[how]>>(32+i&63)&1 != 0 } // &63: no check of i

// find is the slot that has a hash; without it, -1.
func (b *bucket) find(hash uint64) int {
	for i, s := range b[:how] {
		if s != 0 && s.hash() == hash {
			return i
		}
	}
	return -1
}

// free is a slot without a key, or -1.
func (b *bucket) free() int {
	for i, s := range b[:how] {
		if s == 0 {
			return i
		}
	}
	return -1
}

// sort finds a factor that gives each key a slot of its own, and moves them there.
// Two keys take two tries, five 13, on average; seven 400.
func (b *bucket) sort() {
	if b[how] >= odd {
		return
	}
	const step = 0x9E36
	for f := slot(step + 1); f < factors; f += step {
		if sorted, ok := b.sorted(f); ok {
			*b = sorted
			return
		}
	}
	b[how] = odd
}

func (b *bucket) sorted(factor slot) (sorted bucket, ok bool) {
	sorted[how] = factor
	for _, s := range b[:how] {
		if s == 0 {
			continue
		}
		n := home(s.hash(), factor)
		if sorted[n] != 0 { // how is taken as well
			return sorted, false
		}
		sorted[n] = s
	}
	return sorted, true
}

// home is where a bucket whose how is a factor has a key with that hash, if it has
// it.
func home(hash uint64, factor slot) uint64 { return hash * uint64(factor) >> 61 }

// slot is a key and its port range in one word: what its hash has to tell it from
// other keys of the shard, the port before the first, and how many there are. 0 is
// empty.
//
//	63                       33 32 31           16 15            0
//	┌──────────────────────────┬──┬───────────────┬───────────────┐
//	│ hash                     │ 0│ first - 1     │ ports         │
//	└──────────────────────────┴──┴───────────────┴───────────────┘
//
// A rule's first port is at least 1. A key with a list has in its low half where in
// the shard that is.
type slot uint64

func slotOf(hash uint64, r policy.PortRange) slot {
	return slot(hash | uint64(r.Start-1)<<16 | uint64(r.End-r.Start+1))
}

func listAt(hash uint64, at uint32) slot { return slot(hash | uint64(at)) }

func (s slot) hash() uint64 { return uint64(s) >> 32 << 32 }

func (s slot) ports() policy.PortRange {
	before := uint16(s >> 16)
	return policy.PortRange{Start: before + 1, End: before + uint16(s)}
}

func (s slot) at() uint32 { return uint32(s) }

// allows reports whether a slot has that hash and holds the port. Where it has any
// port at all, the difference takes one from the half above, which then is how far
// the port is from the first; one below wraps around to more than any number of
// ports, and another hash is as far away.
func (s slot) allows(hash uint64, port uint16) bool {
	return ((hash|uint64(port)<<16)-uint64(s))>>16 < uint64(uint16(s))
}
