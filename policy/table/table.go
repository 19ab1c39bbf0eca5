package table

import (
	"math/rand/v2"
	"sync/atomic"
	"unsafe"

	"tulle/policy"
)

// Any is a destination in itself: rules kept for "some destination, nobody says
// which" (silk peers publish no endpoints). A lookup for Any finds such rules and
// no others; a lookup for another tag never finds them.
const Any policy.Tag = 1<<32 - 1

// tagLimit is above every other tag that a rule may have, see New. The wire has 16
// bits.
const tagLimit policy.Tag = 1 << 24

// Rule lets Src open flows to Dst. Rules are the same exactly when all fields
// are equal; they may overlap, and each is removed on its own.
type Rule struct {
	Src, Dst policy.Tag
	Protocol policy.Protocol
	Ports    policy.PortRange
}

// valid tells rules that a policy makes from those that are to match nothing.
func (r Rule) valid() bool {
	tag := func(t policy.Tag) bool { return t != policy.NoTag && t < tagLimit || t == Any }
	return tag(r.Src) && tag(r.Dst) && (r.Protocol == policy.TCP || r.Protocol == policy.UDP) && r.Ports.Validate() == nil
}

// rootBits leaves a million rules about 60 to a shard, and the root itself small
// enough to stay in the cache of a processor that looks things up.
const rootBits = 14

// Table is a set of rules. Its zero value is not usable, see New.
type Table struct {
	root   [1 << rootBits]unsafe.Pointer // the p of shards
	factor uint64
	seed   [256]uint64 // by protocol

	// Written by the writer, on lines of their own: readers must not lose the
	// seeds to every update.
	_          [64]byte
	rules      atomic.Int64
	generation atomic.Uint64
}

// New is an empty table: everything is denied.
//
// Seeds are secret and each protocol has its own. Their highest bytes differ so
// that no key of one protocol is ever one of another: there a rule's tags have the
// same bit eight times. Nor is a key ever 0, which is what an empty slot holds.
func New() *Table {
	secret := func(highest uint64) uint64 { return rand.Uint64()>>8 | highest<<56 }
	t := &Table{factor: rand.Uint64() | 1}
	none := secret(4)
	for p := range t.seed {
		t.seed[p] = none
	}
	t.seed[policy.TCP], t.seed[policy.UDP] = secret(1), secret(2)
	for i := range t.root {
		t.root[i] = nothing.p
	}
	return t
}

// key is what is kept and looked for: protocol and tags in one word, each its own.
// The multiplication makes its high bits a hash in the same stroke: those of two
// keys agree about as rarely as chance has it, whichever the keys, for nearly
// every factor. An odd factor loses nothing.
func (t *Table) key(src, dst policy.Tag, proto policy.Protocol) uint64 {
	return ((uint64(src)<<32 | uint64(dst)) ^ t.seed[proto]) * t.factor
}

// place is where in the root a key's shard is; below is the hash that is left to
// find it there.
func place(key uint64) uint64 { return key >> (64 - rootBits) }
func below(key uint64) uint64 { return key << rootBits }

// Lookup reports whether a rule lets src open a flow to dst on that protocol and
// port. Any goroutine may call it at any time.
//
// In a big table a lookup waits for one cache line from memory, and what counts is
// how many of the lookups to come the processor has begun meanwhile. Its room for
// that is counted in instructions, so they are few: one slot is looked at; nothing
// is asked that the shard answers as well (a protocol or a pair that no rule can
// name is in no slot, an empty slot holds no port); no function is called, which
// would need a frame; and what is called below and inlined stands here by itself
// where that leaves fewer. And which slot has the key, or whether one does, decides
// no branch (the if becomes a conditional move): where the processor guesses one
// wrong, it has begun in vain.
func (t *Table) Lookup(src, dst policy.Tag, proto policy.Protocol, port uint16) bool {
	key := t.key(src, dst, proto)
	p := atomic.LoadPointer(&t.root[key>>(64-rootBits)])
	hash := key << rootBits
	// shard.home and, further down, slot
	b := (*bucket)(unsafe.Add(p, int(hash>>(uintptr(p)&shiftMask)&^shiftMask)-int(uintptr(p)&shiftMask)))
	for b.how >= odd { // seldom: then it is searched
		for i := range b.keys {
			switch {
			case b.keys[i] != key:
				continue
			case !b.hasList(i):
				return b.ranges[i].contains(port)
			}
			l := shard{p}.list(b.ranges[i])
			n := l.upTo(port)
			return n > 0 && port <= l.span(n).highest
		}
		if b.how&runsOver == 0 {
			return false
		}
		b = b.next()
	}
	i := hash * uint64(b.how) >> 32 * bucketSlots >> 32
	found := b.ranges[i]
	count := found.count()
	if b.keys[i] != key {
		count = 0
	}
	return found.offset(port) < count
}

// Len is the number of rules. Any goroutine may call it.
func (t *Table) Len() int { return int(t.rules.Load()) }

// Generation grows with each change, after the change is there for every lookup
// that begins. So a verdict that was made after Generation gave g is still the
// table's while Generation gives g. Any goroutine may call it.
func (t *Table) Generation() uint64 { return t.generation.Load() }
