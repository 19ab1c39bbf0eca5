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

// A key has room for so many bits of a tag; the wire has 16. tagLimit is above every
// tag but Any that a rule may have.
const (
	tagBits             = 22
	tagLimit policy.Tag = 1<<tagBits - 1
)

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
	factor uint64
	seed   [256]uint64                   // by protocol
	root   [1 << rootBits]unsafe.Pointer // the p of shards

	// Written by the writer, on lines of their own: readers must not lose the
	// seeds to every update.
	_          [64]byte
	rules      atomic.Int64
	generation atomic.Uint64
}

// New is an empty table: everything is denied.
//
// Seeds are secret and each protocol has its own. They differ in the bit of a key
// that is the protocol's. One that no rule has differs in the bit below, which no
// rule's key has.
func New() *Table {
	secret := rand.Uint64() >> (64 - 2*tagBits) << 2
	t := &Table{factor: (rand.Uint64() | 1) << (64 - keyBits)}
	for p := range t.seed {
		t.seed[p] = secret | 1
	}
	t.seed[policy.TCP], t.seed[policy.UDP] = secret, secret|2
	for i := range t.root {
		t.root[i] = nothing.p
	}
	return t
}

// keyBits are two tags, one to tell the protocol and one to tell that no rule has it.
const keyBits = 2*tagBits + 2

// key is what is kept and looked for: tags and protocol in the highest bits of one
// word, each its own. The multiplication makes the first of them a hash in the same
// stroke: those of two keys agree about as rarely as chance has it, whichever the
// keys, for nearly every factor. An odd factor, shifted to where a key is, loses
// nothing. Any and NoTag count as 0 and 1, the tag t as t+1.
func (t *Table) key(src, dst policy.Tag, proto policy.Protocol) uint64 {
	return (uint64(src+1)<<(tagBits+2) + uint64(dst+1)*4 ^ t.seed[proto]) * t.factor
}

// place is where in the root a key's shard is; below is the hash that is left to
// find it there, all that other keys of the shard have not in common with it.
func place(key uint64) uint64 { return key >> (64 - rootBits) }
func below(key uint64) uint64 { return key << rootBits }

// hashShift is the number of bits below those of a rule's hash.
const hashShift = 64 - (keyBits - 1 - rootBits)

// Lookup reports whether a rule lets src open a flow to dst on that protocol and
// port. Any goroutine may call it at any time.
//
// In a big table a lookup waits for one cache line from memory, and what counts is
// how many of the lookups to come the processor has begun meanwhile. Its room for
// that is counted in instructions, and most in those that wait for the line, so
// they are few: one slot is looked at, and one comparison tells whether it has key
// and port; nothing is asked that the shard answers as well (a pair that no rule
// can name is in no slot, an empty slot holds no port); no function is called,
// which would need a frame; and what is called below and inlined stands here by
// itself where that leaves fewer. And which slot has the key, or whether one does,
// decides no branch: where the processor guesses one wrong, it has begun in vain.
func (t *Table) Lookup(src, dst policy.Tag, proto policy.Protocol, port uint16) bool {
	if (src+1)|(dst+1) >= 1<<tagBits {
		return false // a tag that no rule has, and no key room for
	}
	key := t.key(src, dst, proto)
	s := shard{atomic.LoadPointer((*unsafe.Pointer)(unsafe.Add(unsafe.Pointer(t), unsafe.Offsetof(t.root)+uintptr(place(key)*8))))}
	hash := below(key)
	b := s.home(hash)
	if int64(b[how]) >= 0 { // not odd
		return b[hash*uint64(b[how])>>61].allows(hash, port)
	}
	for { // seldom: it is searched
		for i, slot := range b[:how] {
			switch {
			case slot.hash() != hash || slot == 0:
				continue
			case !b.hasList(i):
				return slot.allows(hash, port)
			}
			l := s.list(slot.at())
			n := l.upTo(port)
			return n > 0 && port <= l.span(n).highest
		}
		if b[how]&runsOver == 0 {
			return false
		}
		b = b.next()
	}
}

// Len is the number of rules. Any goroutine may call it.
func (t *Table) Len() int { return int(t.rules.Load()) }

// Generation grows with each change, after the change is there for every lookup
// that begins. So a verdict that was made after Generation gave g is still the
// table's while Generation gives g. Any goroutine may call it.
func (t *Table) Generation() uint64 { return t.generation.Load() }
