package table

import "tulle/policy"

// Add puts a rule into the table and reports whether it was not there. When it
// returns, every lookup that begins sees the rule. A rule with NoTag as an end
// could match nothing and is not kept: false.
//
// One goroutine at a time may call Add and Remove.
func (t *Table) Add(r Rule) bool { return t.change(r, true) }

// Remove takes a rule out of the table and reports whether it was there. When it
// returns, no lookup that begins sees the rule.
func (t *Table) Remove(r Rule) bool { return t.change(r, false) }

func (t *Table) change(rule Rule, add bool) bool {
	if rule.Src == policy.NoTag || rule.Dst == policy.NoTag {
		return false
	}
	pair := pairOf(rule.Src, rule.Dst)
	h := t.hash(pair, rule.Protocol)
	r := t.root[h>>(64-rootBits)].Load()
	if r == nil {
		r = newRegion(0)
		r.place(h, 0, new(shard))
	}
	old := r.shard(h)
	ranges := old.ranges(old.find(h, pair, rule.Protocol))
	i, found := ranges.place(rule.Ports)
	if found == add {
		return false
	}
	if add {
		ranges = ranges.insert(i, rule.Ports)
		t.rules.Add(1)
	} else {
		ranges = ranges.remove(i)
		t.rules.Add(-1)
	}

	changed := entry{hash: h, slot: slot{pair: pair, proto: rule.Protocol}}
	var scratch [slots]entry
	entries := t.gather(scratch[:0], old, &changed.slot)
	switch len(ranges) {
	case 0:
	case 1:
		changed.start, changed.end = ranges[0].start, ranges[0].end
		entries = append(entries, changed)
	default:
		changed.ranges = ranges
		entries = append(entries, changed)
	}
	if len(entries) > fill {
		t.split(h, r, entries)
	} else {
		t.replace(h, r, entries)
	}
	// Only now: whoever reads the new generation finds the new rules.
	t.generation.Add(1)
	return true
}

// gather appends the entries of s, but not the one with skip's key.
func (t *Table) gather(into []entry, s *shard, skip *slot) []entry {
	for i := range s.slots {
		e := &s.slots[i]
		if e.pair == 0 || skip != nil && e.pair == skip.pair && e.proto == skip.proto {
			continue
		}
		n := entry{slot: *e, hash: t.hash(e.pair, e.proto)}
		if e.list != 0 {
			n.ranges = s.lists[e.list-1]
		}
		into = append(into, n)
	}
	return into
}

// replace publishes entries in place of the shard at h. Where so few are left
// that they and the buddy's fill half a shard, the two become one again; memory
// follows the number of rules down as well as up.
func (t *Table) replace(h uint64, r *region, entries []entry) {
	depth := r.depth(h)
	for depth > 0 {
		other := buddy(h, depth)
		s := r.shard(other)
		if len(entries) > fill/2 || r.depth(other) != depth || len(entries)+s.keys() > fill/2 {
			break
		}
		entries = t.gather(entries, s, nil)
		depth--
	}
	at := &t.root[h>>(64-rootBits)]
	switch {
	case len(entries) == 0 && depth == 0:
		at.Store(nil)
	case depth == 0: // the whole region in one shard, and a directory of one entry
		next := newRegion(0)
		next.place(h, 0, newShard(entries))
		at.Store(next)
	default:
		r.place(h, depth, newShard(entries))
	}
}

// split publishes entries, too many for one shard, in place of the shard at h.
func (t *Table) split(h uint64, r *region, entries []entry) {
	type part struct {
		hash  uint64 // of any of its entries
		depth int
		shard *shard
	}
	var parts []part
	deepest := 0
	var halve func(h uint64, depth int, entries []entry)
	halve = func(h uint64, depth int, entries []entry) {
		if len(entries) <= fill {
			parts = append(parts, part{h, depth, newShard(entries)})
			deepest = max(deepest, depth)
			return
		}
		if depth == maxDepth {
			panic("policy/table: hashes do not differ")
		}
		depth++
		ones := partition(entries, depth)
		same := h >> (regionShift + depth - 1) & 1
		if same == 1 {
			halve(buddy(h, depth), depth, entries[:ones])
			halve(h, depth, entries[ones:])
		} else {
			halve(h, depth, entries[:ones])
			halve(buddy(h, depth), depth, entries[ones:])
		}
	}
	halve(h, r.depth(h), entries)

	next := r.grown(deepest)
	for _, p := range parts {
		next.place(p.hash, p.depth, p.shard)
	}
	if next != r {
		t.root[h>>(64-rootBits)].Store(next)
	}
}

// partition moves the entries with the last of d directory bits set behind the
// others and returns where they begin.
func partition(entries []entry, d int) int {
	ones := len(entries)
	for i := 0; i < ones; {
		if entries[i].hash>>(regionShift+d-1)&1 == 0 {
			i++
			continue
		}
		ones--
		entries[i], entries[ones] = entries[ones], entries[i]
	}
	return ones
}
