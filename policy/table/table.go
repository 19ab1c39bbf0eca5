package table

import (
	"math/bits"
	"math/rand/v2"
	"sync/atomic"

	"tulle/policy"
)

// Any is a destination in itself: rules kept for "some destination, nobody says
// which" (silk peers publish no endpoints). A lookup for Any finds such rules and
// no others; a lookup for another tag never finds them.
const Any policy.Tag = 1<<32 - 1

// Rule lets Src open flows to Dst. Rules are the same exactly when all fields
// are equal; they may overlap, and each is removed on its own.
type Rule struct {
	Src, Dst policy.Tag
	Protocol policy.Protocol
	Ports    policy.PortRange
}

const (
	rootBits = 6
	// regionShift puts the bits that pick a shard above those that pick a bucket.
	regionShift = 32
)

// part of the root by protocol. Part 0 is of those that no rule can name; it
// stays empty.
var part = [256]uint8{policy.TCP: 1, policy.UDP: 2}

// Table is a set of rules. Its zero value is not usable, see New.
type Table struct {
	seed [2]uint64
	root [3 << rootBits]root // by protocol, then by hash

	// Written by the writer, on lines of their own: readers must not lose the
	// root to every update.
	_          [64]byte
	rules      atomic.Int64
	generation atomic.Uint64
}

// New is an empty table: everything is denied.
func New() *Table {
	t := &Table{seed: [2]uint64{rand.Uint64(), rand.Uint64() | 1}}
	for i := range t.root {
		t.root[i].Store(nowhere)
	}
	return t
}

// pairOf is both tags in one word.
func pairOf(src, dst policy.Tag) uint64 { return uint64(src)<<32 | uint64(dst) }

// hash folds a 128-bit product, so that every bit of the pair and of the seed
// reaches every bit of the result, and mixes the halves once more.
func (t *Table) hash(pair uint64) uint64 {
	hi, lo := bits.Mul64(pair^t.seed[0], t.seed[1])
	h := (hi ^ lo) * 0x9E3779B97F4A7C15
	return h ^ h>>32
}

// region is the root's place for a hash.
func (t *Table) region(h uint64, proto policy.Protocol) *root {
	return &t.root[h>>(64-rootBits)+uint64(part[proto])<<rootBits]
}

// Lookup reports whether a rule lets src open a flow to dst on that protocol and
// port. Any goroutine may call it at any time.
//
// Which slot has the key, or whether one does, decides no branch (the ifs become
// conditional moves): a branch would wait for the cache line, and where the
// processor guesses it wrong it cannot have begun with the next lookup
// meanwhile. For the same reason nothing is asked that the tables can answer: a
// protocol without rules has an empty part of the root, a pair with NoTag is in
// no slot, and an empty slot's range holds no port.
func (t *Table) Lookup(src, dst policy.Tag, proto policy.Protocol, port uint16) bool {
	pair := pairOf(src, dst)
	h := t.hash(pair)
	s := t.region(h, proto).Load().shard(h)
	b := &s.buckets[home(h)]
	if b.odd != 0 {
		return s.walk(h, pair, port)
	}
	var found ports
	r0, r1, r2, r3, r4 := b.ranges[0], b.ranges[1], b.ranges[2], b.ranges[3], b.ranges[4]
	if b.pairs[0] == pair {
		found = r0
	}
	if b.pairs[1] == pair {
		found = r1
	}
	if b.pairs[2] == pair {
		found = r2
	}
	if b.pairs[3] == pair {
		found = r3
	}
	if b.pairs[4] == pair {
		found = r4
	}
	return found.contains(port)
}

// Len is the number of rules. Any goroutine may call it.
func (t *Table) Len() int { return int(t.rules.Load()) }

// Generation grows with each change, after the change is there for every lookup
// that begins. So a verdict that was made after Generation gave g is still the
// table's while Generation gives g. Any goroutine may call it.
func (t *Table) Generation() uint64 { return t.generation.Load() }
