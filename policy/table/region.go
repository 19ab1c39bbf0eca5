package table

import (
	"math/bits"
	"sync/atomic"
)

// root is the table's way to a region.
type root = atomic.Pointer[region]

// nowhere is the region of no rules, the same for all tables. Like every region
// with one shard it is replaced by an update, not written.
var nowhere = func() *region {
	r := newRegion(0)
	r.place(0, 0, new(shard))
	return r
}()

// maxDepth is how many bits of the hash there are to pick a shard by. Nothing
// comes near it: a shard that deep and full needs 73 keys whose seeded hashes
// agree in 32 bits.
const maxDepth = 64 - rootBits - regionShift

// region is one of the root's parts: an extendible hash of its own. Its directory
// has a power of two entries. A shard of depth d holds the keys whose hashes agree
// in the lowest d directory bits, and all entries that agree in them point to it.
// The array never grows; a doubled one comes with a new region.
type region struct {
	mask      uint64
	directory []atomic.Pointer[shard]
}

func newRegion(depth int) *region {
	n := uint64(1) << depth
	return &region{mask: n - 1, directory: make([]atomic.Pointer[shard], n)}
}

// shard is where the keys with this hash are.
func (r *region) shard(h uint64) *shard { return r.directory[h>>regionShift&r.mask].Load() }

// depth is the depth of the shard at h: the directory's own, less one for each
// bit that makes no difference.
func (r *region) depth(h uint64) int {
	s := r.shard(h)
	d := bits.Len64(r.mask)
	for d > 0 && r.shard(buddy(h, d)) == s {
		d--
	}
	return d
}

// bit is the last of depth directory bits of h.
func bit(h uint64, depth int) uint64 { return h >> (regionShift + depth - 1) & 1 }

// buddy is a hash that differs from h in the last of d directory bits.
func buddy(h uint64, d int) uint64 { return h ^ 1<<(regionShift+d-1) }

// place points all entries that agree with h in the lowest d bits to s.
func (r *region) place(h uint64, d int, s *shard) {
	for i := h >> regionShift & (1<<d - 1); i <= r.mask; i += 1 << d {
		r.directory[i].Store(s)
	}
}

// grown is a region with the same shards and a directory of at least d bits,
// which is r itself where it has them.
func (r *region) grown(d int) *region {
	if bits.Len64(r.mask) >= d {
		return r
	}
	next := newRegion(d)
	for i := range next.directory {
		next.directory[i].Store(r.directory[uint64(i)&r.mask].Load())
	}
	return next
}
