package table

import "tulle/policy"

// Add puts a rule into the table and reports whether it was not there. When it
// returns, every lookup that begins sees the rule. A rule that no policy
// makes (NoTag is one of its ends, its protocol is neither TCP nor UDP, its ports
// begin at 0 or run backwards) matches nothing and is not kept: false.
//
// One goroutine at a time may call Add and Remove.
func (t *Table) Add(r Rule) bool { return t.change(r, true) }

// Remove takes a rule out of the table and reports whether it was there. When it
// returns, no lookup that begins sees the rule.
func (t *Table) Remove(r Rule) bool { return t.change(r, false) }

func (t *Table) change(rule Rule, add bool) bool {
	if rule.Src == policy.NoTag || rule.Dst == policy.NoTag || part[rule.Protocol] == 0 || rule.Ports.Validate() != nil {
		return false
	}
	pair := pairOf(rule.Src, rule.Dst)
	w := update{table: t, hash: t.hash(pair)}
	w.at = t.region(w.hash, rule.Protocol)
	w.region = w.at.Load()
	old := w.region.shard(w.hash)
	var ranges spans
	b, i := old.find(w.hash, pair)
	if b != nil {
		ranges = old.spans(b, i)
	}
	n, found := ranges.place(rule.Ports)
	if found == add {
		return false
	}
	if add {
		ranges = ranges.insert(n, rule.Ports)
		t.rules.Add(1)
	} else {
		ranges = ranges.remove(n)
		t.rules.Add(-1)
	}

	changed := entry{hash: w.hash, pair: pair}
	var scratch [fill + 1]entry
	entries := t.gather(scratch[:0], old, pair)
	switch len(ranges) {
	case 0:
	case 1:
		changed.one = portsOf(policy.PortRange{Start: ranges[0].start, End: ranges[0].end})
		entries = append(entries, changed)
	default:
		changed.list = ranges
		entries = append(entries, changed)
	}
	if len(entries) > fill {
		w.split(entries)
	} else {
		w.replace(entries)
	}
	// Only now: whoever reads the new generation finds the new rules.
	t.generation.Add(1)
	return true
}

// gather appends the entries of s, but for the one of the pair skip.
func (t *Table) gather(into []entry, s *shard, skip uint64) []entry {
	for at := range s.buckets {
		b := &s.buckets[at]
		for i, pair := range b.pairs {
			if pair == 0 || pair == skip {
				continue
			}
			e := entry{hash: t.hash(pair), pair: pair, one: b.ranges[i]}
			if b.odd>>i&1 != 0 {
				e.list = s.lists[b.ranges[i]]
			}
			into = append(into, e)
		}
	}
	return into
}

// update is a change of one shard on its way: the one at hash in region, which
// the table's root has at at.
type update struct {
	table  *Table
	hash   uint64
	at     *root
	region *region
}

// replace publishes entries in the shard's place. Where so few are left that
// they and the buddy's fill half a shard, the two become one again: memory
// follows the number of rules down as well as up.
func (w *update) replace(entries []entry) {
	depth := w.region.depth(w.hash)
	for depth > 0 {
		other := buddy(w.hash, depth)
		s := w.region.shard(other)
		if len(entries) > fill/2 || w.region.depth(other) != depth || len(entries)+s.keys() > fill/2 {
			break
		}
		entries = w.table.gather(entries, s, 0)
		depth--
	}
	switch {
	case depth > 0:
		w.region.place(w.hash, depth, newShard(entries))
	case len(entries) == 0:
		w.at.Store(nowhere)
	default: // the whole region in one shard, and a directory of one entry
		next := newRegion(0)
		next.place(w.hash, 0, newShard(entries))
		w.at.Store(next)
	}
}

// half is one of the shards that a full one becomes: that of the keys which
// agree with hash in depth directory bits.
type half struct {
	hash  uint64
	depth int
	shard *shard
}

// split publishes entries, too many for one shard, in the shard's place.
func (w *update) split(entries []entry) {
	halves := halve(nil, w.hash, w.region.depth(w.hash), entries)
	deepest := 0
	for _, p := range halves {
		deepest = max(deepest, p.depth)
	}
	next := w.region.grown(deepest)
	for _, p := range halves {
		next.place(p.hash, p.depth, p.shard)
	}
	if next != w.region {
		w.at.Store(next)
	}
}

// halve appends the halves that entries make, which agree with h in depth bits:
// two of them but for the rare case that one half is too full still.
func halve(halves []half, h uint64, depth int, entries []entry) []half {
	if len(entries) <= fill {
		return append(halves, half{h, depth, newShard(entries)})
	}
	if depth == maxDepth {
		panic("policy/table: the hashes of too many keys do not differ")
	}
	depth++
	ones := partition(entries, depth)
	zero, one := h, buddy(h, depth)
	if bit(h, depth) == 1 {
		zero, one = one, zero
	}
	return halve(halve(halves, zero, depth, entries[:ones]), one, depth, entries[ones:])
}

// partition moves the entries whose last of depth directory bits is set behind
// the others and returns where they begin.
func partition(entries []entry, depth int) int {
	ones := len(entries)
	for i := 0; i < ones; {
		if bit(entries[i].hash, depth) == 0 {
			i++
			continue
		}
		ones--
		entries[i], entries[ones] = entries[ones], entries[i]
	}
	return ones
}
