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
	// regionShift puts the bits that pick a shard above those that pick a slot.
	regionShift = 32
)

// Table is a set of rules. Its zero value is not usable, see New.
type Table struct {
	seed [2]uint64
	root [2 << rootBits]root // by protocol, then by hash

	// Written by the writer, on lines of their own: readers must not lose the
	// root to every update.
	_          [64]byte
	rules      atomic.Int64
	generation atomic.Uint64
}

// New is an empty table: everything is denied.
func New() *Table { return &Table{seed: [2]uint64{rand.Uint64(), rand.Uint64() | 1}} }

// askable reports whether a rule between these ends can be at all.
func askable(src, dst policy.Tag, proto policy.Protocol) bool {
	return src != policy.NoTag && dst != policy.NoTag && (proto == policy.TCP || proto == policy.UDP)
}

// pairOf is both tags in one word, never 0 since neither is NoTag.
func pairOf(src, dst policy.Tag) uint64 { return uint64(src)<<32 | uint64(dst) }

// hash folds two 128-bit products, so that every bit of the pair and of the
// seed reaches every bit of the result.
func (t *Table) hash(pair uint64) uint64 {
	hi, lo := bits.Mul64(pair^t.seed[0], t.seed[1])
	hi, lo = bits.Mul64(hi^lo, 0x9E3779B97F4A7C15)
	return hi ^ lo
}

// region is the root's place for a hash. TCP is 6 and UDP is 17, so one bit
// tells them apart.
func (t *Table) region(h uint64, proto policy.Protocol) *root {
	return &t.root[h>>(64-rootBits)|uint64(proto>>4&1)<<rootBits]
}

// Lookup reports whether a rule lets src open a flow to dst on that protocol and
// port. Any goroutine may call it at any time.
func (t *Table) Lookup(src, dst policy.Tag, proto policy.Protocol, port uint16) bool {
	if !askable(src, dst, proto) {
		return false
	}
	pair := pairOf(src, dst)
	h := t.hash(pair)
	r := t.region(h, proto).Load()
	return r != nil && r.shard(h).allowed(h, pair, port)
}

// Len is the number of rules. Any goroutine may call it.
func (t *Table) Len() int { return int(t.rules.Load()) }

// Generation grows with each change, after the change is there for every lookup
// that begins. So a verdict that was made after Generation gave g is still the
// table's while Generation gives g. Any goroutine may call it.
func (t *Table) Generation() uint64 { return t.generation.Load() }
