package table

import "unsafe"

// shard is a small hash table that never changes once it is published: one piece of
// memory without pointers, first buckets, then the lists of keys that have several
// ranges.
//
//	p ──┐
//	    ▼
//	┌──────────┬─────────┬───┬──────────┬───────────────────────┬──────
//	│ bucket 0 │ 1       │ … │ 1<<depth │ what the last has no  │ lists
//	└──────────┴─────────┴───┴──────────┴─room for, mostly none─┴──────
//
// Buckets begin at multiples of 64, and p points as many bytes into the first as a
// hash is to be shifted by to become a bucket's offset. So whoever has p knows at
// once which line to ask memory for: p and the shifted hash are added and rounded
// down. That begins as far into the first bucket as p does and so needs one bucket
// more than 1<<depth; its being right where the line begins would take two more
// instructions of each lookup.
type shard struct{ p unsafe.Pointer }

const (
	shiftMask = lineSize - 1
	hashBits  = 64 - 6 // 6 are those of an offset in a bucket
)

// nothing is the shard of no rules, the same for all tables.
var nothing = newShard(0, 0, 0)

// newShard is an empty one with 1<<depth buckets and one where a search may begin,
// some more, and room for so many spans.
func newShard(depth, more, spans int) shard {
	lines := 1<<depth + 1 + more + (spans*spanSize+lineSize-1)/lineSize
	first := unsafe.Pointer(unsafe.SliceData(make([]bucket, lines)))
	if uintptr(first)%lineSize != 0 { // the allocator has aligned whole lines to lines so far, but never said so
		first = unsafe.Pointer(unsafe.SliceData(make([]bucket, lines+1)))
		first = unsafe.Add(first, -uintptr(first)%lineSize)
	}
	return shard{unsafe.Add(first, hashBits-depth)}
}

// shift makes a hash an offset.
func (s shard) shift() uintptr { return uintptr(s.p) & shiftMask }

func (s shard) depth() int { return hashBits - int(s.shift()) }

// home is the bucket where the search for a hash begins.
func (s shard) home(hash uint64) *bucket {
	return (*bucket)(unsafe.Pointer((uintptr(s.p) + uintptr(hash>>s.shift())) &^ shiftMask))
}

func (s shard) first() unsafe.Pointer { return unsafe.Add(s.p, -int(s.shift())) }

// bucket is the one with that number.
func (s shard) bucket(i int) *bucket { return (*bucket)(unsafe.Add(s.first(), i*lineSize)) }

// next is the bucket that has what b had no room for. Only after one that runs over.
func (b *bucket) next() *bucket { return (*bucket)(unsafe.Add(unsafe.Pointer(b), lineSize)) }

// find is where a hash is; without it, nil.
func (s shard) find(hash uint64) (b *bucket, i int) {
	for b = s.home(hash); ; b = b.next() {
		if i = b.find(hash); i >= 0 {
			return b, i
		}
		if b[how]&runsOver == 0 {
			return nil, 0
		}
	}
}

// list is what stands where a key's range says, in words of 16 bits from the shard's
// beginning: a span that holds how many there are, and then these.
func (s shard) list(at uint32) list {
	return list{unsafe.Add(s.first(), uintptr(at)*wordSize)}
}
