package table

import (
	"unsafe"

	"tulle/policy"
)

// bucketSlots make a bucket one cache line.
const (
	bucketSlots = 5
	lineSize    = 64
)

// bucket holds the keys whose hash leads to it. Where they are more than its slots
// it runs over, and the next bucket has the rest.
type bucket struct {
	keys   [bucketSlots]uint64 // 0: empty
	ranges [bucketSlots]ports  // of a key with a list: where in the shard that is
	how    uint32
}

var _ [lineSize]byte = [unsafe.Sizeof(bucket{})]byte{}

// How is less than odd, and then a factor, in a bucket where each key is in the
// slot that slot names for it and has one range. Others are searched; they have one
// of these bits, or odd<<i where slot i has a list.
const (
	odd      = 1 << 24
	unsorted = 1 << 30 // no factor was found
	runsOver = 1 << 31
)

// slot is where a bucket whose how is a factor has a key with that hash, if it has
// it.
func slot(hash uint64, how uint32) uint64 { return hash * uint64(how) >> 32 * bucketSlots >> 32 }

func (b *bucket) hasList(i int) bool { return b.how>>((24+i)&31)&1 != 0 } // &31: no check of i

// find is the slot that has a key; without it, -1.
func (b *bucket) find(key uint64) int {
	for i := range b.keys {
		if b.keys[i] == key {
			return i
		}
	}
	return -1
}

// next is the bucket that has what b had no room for. Only after one that runs over.
func (b *bucket) next() *bucket { return (*bucket)(unsafe.Add(unsafe.Pointer(b), lineSize)) }

// sort finds a factor that gives each key a slot of its own, and moves them there.
// Five keys take 26 tries on average; in one of some ten million buckets none of
// them will do.
func (b *bucket) sort() {
	if b.how >= odd {
		return
	}
	const step = 0x9E36
	for how := uint32(step + 1); how < odd; how += step {
		if sorted, ok := b.sorted(how); ok {
			*b = sorted
			return
		}
	}
	b.how = unsorted
}

func (b *bucket) sorted(how uint32) (sorted bucket, ok bool) {
	sorted.how = how
	for i, key := range b.keys {
		if key == 0 {
			continue
		}
		n := slot(below(key), how)
		if sorted.keys[n] != 0 {
			return sorted, false
		}
		sorted.keys[n], sorted.ranges[n] = key, b.ranges[i]
	}
	return sorted, true
}

// ports is a port range in one word: how many ports above the first. 0 holds no
// port; a rule's first is at least 1, so that the count fits.
type ports uint32

func portsOf(r policy.PortRange) ports { return ports(r.End-r.Start+1)<<16 | ports(r.Start) }

func (p ports) domain() policy.PortRange {
	return policy.PortRange{Start: uint16(p), End: uint16(p) + uint16(p>>16) - 1}
}

func (p ports) count() uint32 { return uint32(p >> 16) }

// offset is how far port is from the first. One below wraps around to more than
// any count.
func (p ports) offset(port uint16) uint32 { return uint32(port - uint16(p)) }

func (p ports) contains(port uint16) bool { return p.offset(port) < p.count() }
