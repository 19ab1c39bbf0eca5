package table

import (
	"sync/atomic"

	"tulle/policy"
)

// Add puts a rule into the table and reports whether it was not there. When it
// returns, every lookup that begins sees the rule. A rule that no policy
// makes (an end is NoTag or a number of more than 22 bits, its protocol neither
// TCP nor UDP, its ports begin at 0 or run backwards) matches nothing and is not kept: false.
//
// One goroutine at a time may call Add and Remove.
func (t *Table) Add(r Rule) bool { return t.change(r, true) }

// Remove takes a rule out of the table and reports whether it was there. When it
// returns, no lookup that begins sees the rule.
func (t *Table) Remove(r Rule) bool { return t.change(r, false) }

func (t *Table) change(rule Rule, add bool) bool {
	if !rule.valid() {
		return false
	}
	key := t.key(rule.Src, rule.Dst, rule.Protocol)
	at, changed := place(key), entry{hash: below(key)}
	old := shard{t.root[at]} // no other goroutine writes it
	ranges := old.ranges(changed.hash)
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

	var scratch [128]entry
	entries := old.gather(scratch[:0], changed.hash)
	switch len(ranges) {
	case 0:
	case 1:
		changed.one = policy.PortRange{Start: ranges[0].start, End: ranges[0].end}
		entries = append(entries, changed)
	default:
		changed.list = ranges
		entries = append(entries, changed)
	}
	atomic.StorePointer(&t.root[at], build(entries).p)
	// Only now: whoever reads the new generation finds the new rules.
	t.generation.Add(1)
	return true
}
