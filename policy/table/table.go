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
	rootBits = 8
	// regionShift puts the bits that pick a shard above those that pick a slot.
	regionShift = 32
)

// Table is a set of rules. Its zero value is not usable, see New.
type Table struct {
	seedPair, seedProto uint64
	root                [1 << rootBits]atomic.Pointer[region]

	// Written by the writer, on lines of their own: readers of the root must
	// not lose it to every update.
	_          [64]byte
	rules      atomic.Int64
	generation atomic.Uint64
}

// New is an empty table: everything is denied.
func New() *Table {
	return &Table{seedPair: rand.Uint64(), seedProto: rand.Uint64()}
}

// pairOf is both tags in one word; 0 is no pair, since NoTag is no end of a rule.
func pairOf(src, dst policy.Tag) uint64 { return uint64(src)<<32 | uint64(dst) }

// hash folds the 128-bit product of the two seeded words, so that every bit of
// the key reaches every bit of the result.
func (t *Table) hash(pair uint64, proto policy.Protocol) uint64 {
	hi, lo := bits.Mul64(pair^t.seedPair, uint64(proto)<<56^t.seedProto|1)
	hi, lo = bits.Mul64(hi^lo, 0x9E3779B97F4A7C15)
	return hi ^ lo
}

// Lookup reports whether a rule lets src open a flow to dst on that protocol and
// port. Any goroutine may call it at any time.
func (t *Table) Lookup(src, dst policy.Tag, proto policy.Protocol, port uint16) bool {
	if src == policy.NoTag || dst == policy.NoTag {
		return false
	}
	pair := pairOf(src, dst)
	h := t.hash(pair, proto)
	r := t.root[h>>(64-rootBits)].Load()
	if r == nil {
		return false
	}
	s := r.shard(h)
	e := s.find(h, pair, proto)
	if e.list != 0 {
		return s.lists[e.list-1].contains(port)
	}
	return e.start <= port && port <= e.end && e.pair != 0
}

// Len is the number of rules. Any goroutine may call it.
func (t *Table) Len() int { return int(t.rules.Load()) }

// Generation grows with each change, after the change is there for every lookup
// that begins. So a verdict that was made after Generation gave g is still the
// table's while Generation gives g. Any goroutine may call it.
func (t *Table) Generation() uint64 { return t.generation.Load() }
