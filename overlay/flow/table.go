package flow

import (
	"errors"
	"math/rand/v2"
	"sync/atomic"

	"tulle/policy"
)

// Why a flow was not entered.
var (
	ErrFull         = errors.New("flow table is full")
	ErrEndpointFull = errors.New("endpoint has too many flows")
)

const (
	shardBits = 6
	shards    = 1 << shardBits
	// sweepEvery is the number of ticks in which the whole table is swept once.
	sweepEvery = 8
	// rest is the number of ticks before a removed record's number is used again.
	rest = 2
)

// Table holds flows. Its methods may be called from any goroutine, but Tick from
// one at a time.
type Table struct {
	limits Limits
	seed   [3]uint64
	now    atomic.Uint32
	count  atomic.Int64
	slots  []atomic.Int32
	shards [shards]shard
}

// New is an empty table. Memory grows with the flows, to 160 bytes and an index
// of 11 to 22 bytes each.
func New(l Limits) *Table {
	if l.Flows <= 0 {
		l.Flows = 1 << 20
	}
	if l.PerEndpoint <= 0 {
		l.PerEndpoint = 1 << 16
	}
	if l.Slots <= 0 || l.Slots > noSlot16 {
		l.Slots = noSlot16
	}
	t := &Table{limits: l, slots: make([]atomic.Int32, l.Slots)}
	for i := range t.seed {
		t.seed[i] = rand.Uint64() | 1
	}
	each := (l.Flows + shards - 1) / shards
	for i := range t.shards {
		t.shards[i].init(each)
	}
	return t
}

// Now is the last tick.
func (t *Table) Now() uint32 { return t.now.Load() }

// Len is the number of flows, expired ones that were not swept yet included.
func (t *Table) Len() int { return int(t.count.Load()) }

// Lookup finds the flow of a packet, fills f and tells the packet's direction in
// it. It neither locks nor allocates.
func (t *Table) Lookup(k *Key, f *Flow) (Direction, bool) {
	n := nameOf(k)
	h := n.hash(&t.seed)
	s := &t.shards[h>>(64-shardBits)]
	index := s.index.Load()
	entry := h << 32
	mask := uint64(len(*index) - 1)
	for i := h & mask; ; i = (i + 1) & mask {
		e := (*index)[i].Load()
		if e == empty {
			return Forward, false
		}
		if e&hashMask != entry || e == removed {
			continue
		}
		number := uint32(e) - firstNumber
		r := s.record(number)
		version := r.version.Load()
		if version&1 == 0 {
			continue
		}
		d, ok := r.matches(&n)
		if !ok || r.expired(t.now.Load()) {
			continue
		}
		r.read(f)
		if r.version.Load() != version {
			continue
		}
		f.ref = Ref{shard: uint16(h >> (64 - shardBits)), number: number, version: version}
		return d, true
	}
}

// Touch takes a packet of a flow in: counters, progress, life.
func (t *Table) Touch(ref Ref, d Direction, s *Segment) {
	if r := t.at(ref); r != nil {
		r.touch(d, s, t.now.Load())
	}
}

// SetGeneration notes that the flow was judged and allowed by that generation.
func (t *Table) SetGeneration(ref Ref, generation uint64) {
	if r := t.at(ref); r != nil {
		r.generation.Store(generation)
	}
}

// at is the record of a living flow, or nil; no Ref names one that lives with an
// even version, the zero Ref least of all.
func (t *Table) at(ref Ref) *record {
	if ref.version&1 == 0 {
		return nil
	}
	r := t.shards[ref.shard].record(ref.number)
	if r.version.Load() != ref.version {
		return nil
	}
	return r
}

// Insert enters f, seen now with its first packet, whose progress is s; f gets
// its Ref. Whatever was known of the same conversation, either way round, is
// replaced. ErrFull and ErrEndpointFull leave the table as it was, but for that.
func (t *Table) Insert(f *Flow, s *Segment) error {
	n := nameOf(&f.Key)
	h := n.hash(&t.seed)
	sh := &t.shards[h>>(64-shardBits)]
	now := t.now.Load()
	f.State, f.LastSeen = 0, now
	f.Packets, f.Bytes, f.Next, f.Acked = [2]uint64{}, [2]uint64{}, [2]uint32{}, [2]uint32{}

	sh.mu.Lock()
	defer sh.mu.Unlock()
	if number, ok := sh.find(h, &n); ok {
		t.removeLocked(sh, h, number, now)
	}
	if !t.charge(f.SrcSlot) {
		return ErrEndpointFull
	}
	if f.DstSlot != f.SrcSlot && !t.charge(f.DstSlot) {
		t.discharge(f.SrcSlot)
		return ErrEndpointFull
	}
	number, ok := sh.take(now)
	if !ok {
		t.discharge(f.SrcSlot)
		if f.DstSlot != f.SrcSlot {
			t.discharge(f.DstSlot)
		}
		return ErrFull
	}
	r := sh.record(number)
	r.write(f, &n, now)
	if s != nil {
		d := Forward
		if s.Backward {
			d = Backward
		}
		r.touch(d, s, now)
	}
	version := r.version.Add(1)
	sh.link(number, r)
	sh.put(h, number)
	t.count.Add(1)
	f.ref = Ref{shard: uint16(h >> (64 - shardBits)), number: number, version: version}
	return nil
}

// Delete removes the flow and reports whether it was there. last, if not nil,
// gets its final state.
func (t *Table) Delete(ref Ref, last *Flow) bool {
	sh := &t.shards[ref.shard]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	r := t.at(ref)
	if r == nil {
		return false
	}
	if last != nil {
		r.read(last)
		last.ref = ref
	}
	t.removeLocked(sh, r.hash(&t.seed), ref.number, t.now.Load())
	return true
}

func (t *Table) removeLocked(sh *shard, h uint64, number, now uint32) {
	r := sh.record(number)
	owner := r.owner.Load()
	src, dst := slotOf(owner>>16), slotOf(owner)
	t.discharge(src)
	if dst != src {
		t.discharge(dst)
	}
	r.version.Add(1)
	sh.drop(h, number)
	sh.unlink(number, r)
	sh.free = append(sh.free, resting{number: number, since: now})
	t.count.Add(-1)
}

func (t *Table) charge(slot int) bool {
	if slot < 0 || slot >= len(t.slots) {
		return slot == NoSlot
	}
	if t.slots[slot].Add(1) > int32(t.limits.PerEndpoint) {
		t.slots[slot].Add(-1)
		return false
	}
	return true
}

func (t *Table) discharge(slot int) {
	if slot >= 0 && slot < len(t.slots) {
		t.slots[slot].Add(-1)
	}
}

// EndpointLen is the number of flows charged to a slot.
func (t *Table) EndpointLen(slot int) int { return int(t.slots[slot].Load()) }

// Tick sets the time, in seconds of any clock that only goes forward, and sweeps
// a part of the table.
func (t *Table) Tick(now uint32) {
	t.now.Store(now)
	for i := int(now % sweepEvery); i < shards; i += sweepEvery {
		t.sweep(&t.shards[i], now)
	}
}

// sweep removes the expired flows of a shard, holding its lock for a chunk at a time.
func (t *Table) sweep(sh *shard, now uint32) {
	for first := uint32(0); first < sh.used.Load(); first += chunkSize {
		sh.mu.Lock()
		for number := first; number < min(first+chunkSize, sh.used.Load()); number++ {
			r := sh.record(number)
			if r.version.Load()&1 == 1 && r.expired(now) {
				t.removeLocked(sh, r.hash(&t.seed), number, now)
			}
		}
		sh.mu.Unlock()
	}
}

// Each calls f with a copy of every flow that was there when it began and still
// is. f may delete it, and may enter others.
func (t *Table) Each(f func(*Flow)) {
	var fl Flow
	for i := range t.shards {
		sh := &t.shards[i]
		for number := range sh.used.Load() {
			if t.copy(i, number, &fl) {
				f(&fl)
			}
		}
	}
}

// EachPair calls f as Each does, with the flows from one tag to another. Its
// cost follows their number.
func (t *Table) EachPair(src, dst policy.Tag, f func(*Flow)) {
	var fl Flow
	var numbers []uint32
	for i := range t.shards {
		sh := &t.shards[i]
		numbers = sh.pair(numbers[:0], uint64(src)<<32|uint64(dst))
		for _, number := range numbers {
			if t.copy(i, number, &fl) {
				f(&fl)
			}
		}
	}
}

// copy reads a record if it is a living flow.
func (t *Table) copy(shard int, number uint32, f *Flow) bool {
	r := t.shards[shard].record(number)
	version := r.version.Load()
	if version&1 == 0 || r.expired(t.now.Load()) {
		return false
	}
	r.read(f)
	f.ref = Ref{shard: uint16(shard), number: number, version: version}
	return r.version.Load() == version
}

// Alive reports whether the flow is still there.
func (t *Table) Alive(ref Ref) bool {
	r := t.at(ref)
	return r != nil && !r.expired(t.now.Load())
}
