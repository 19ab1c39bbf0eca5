package table

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"tulle/policy"
)

var sizes = []int{10, 10_000, 1_000_000}

// query is one lookup, drawn before the clock runs. 16 bytes: the queries
// themselves stream through the cache and cost next to nothing.
type query struct {
	src, dst policy.Tag
	port     uint16
	proto    policy.Protocol
}

// queries draws hits from all rules and misses that go as far: the right pair on a
// wrong port, and a stranger.
func queries(list []Rule, n int, r *rand.Rand, hits, misses bool) []query {
	qs := make([]query, n)
	for i := range qs {
		rule := list[r.IntN(len(list))]
		q := query{rule.Src, rule.Dst, rule.Ports.Start, rule.Protocol}
		if misses && (!hits || r.IntN(2) == 0) {
			if r.IntN(2) == 0 {
				q.port = 0
			} else {
				q.dst += 1 << 17
			}
		}
		qs[i] = q
	}
	return qs
}

// BenchmarkLookup: "independent" is what a receive path does, one packet after
// the other, whose lookups the processor overlaps; in "dependent" the next key
// hangs on the last answer, which shows the latency of one lookup. The loops do
// little else: what they do takes of the room in which lookups overlap.
func BenchmarkLookup(b *testing.B) {
	const drawn = 1 << 20
	for _, size := range sizes {
		r := rand.New(rand.NewPCG(uint64(size), 1))
		list := rules(size, r)
		tab := filled(list)
		for _, kind := range []struct {
			name         string
			hits, misses bool
		}{{"hits", true, false}, {"misses", false, true}, {"mixed", true, true}} {
			qs := queries(list, drawn, r, kind.hits, kind.misses)
			name := fmt.Sprintf("rules=%d/%s/", size, kind.name)
			want := func(b *testing.B, n, found int) {
				if !kind.misses && found != n || !kind.hits && found != 0 {
					b.Fatalf("%d of %d found", found, n)
				}
			}
			b.Run(name+"independent", func(b *testing.B) {
				b.ReportAllocs()
				found := 0
				for n := 0; n < b.N; n += drawn {
					found += ask(tab, qs[:min(drawn, b.N-n)])
				}
				want(b, b.N, found)
			})
			b.Run(name+"dependent", func(b *testing.B) {
				b.ReportAllocs()
				i, found := 0, 0
				for range b.N {
					q := &qs[i&(drawn-1)]
					hit := one(tab.Lookup(q.src, q.dst, q.proto, q.port))
					found += hit
					i += 1 + hit
				}
				want(b, b.N, found)
			})
		}
	}
}

// ask is a function of its own so that the loop keeps nothing else at hand.
func ask(tab *Table, qs []query) (found int) {
	for i := range qs {
		q := &qs[i]
		found += one(tab.Lookup(q.src, q.dst, q.proto, q.port))
	}
	return found
}

// one counts without a branch.
func one(b bool) (n int) {
	if b {
		n = 1
	}
	return n
}

// BenchmarkUpdate adds and removes one rule of many.
func BenchmarkUpdate(b *testing.B) {
	for _, size := range sizes {
		list := rules(size, rand.New(rand.NewPCG(uint64(size), 2)))
		tab := filled(list)
		b.Run(fmt.Sprintf("rules=%d", size), func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				r := list[i/2%size]
				if i%2 == 0 {
					tab.Remove(r)
				} else {
					tab.Add(r)
				}
				i++
			}
		})
	}
}

// An update of a million rules stays within its bar. Each cost is the best of many
// small batches, since the machine may be busy.
func TestUpdateOfAMillionRules(t *testing.T) {
	const batches, batch, bar = 40, 250, 50 * time.Microsecond
	list := rules(1_000_000, rand.New(rand.NewPCG(5, 6)))
	cost := func(change func(Rule) bool) time.Duration {
		best := time.Hour
		for i := range batches {
			began := time.Now()
			for _, r := range list[i*batch : (i+1)*batch] {
				if !change(r) {
					t.Fatalf("%v changes nothing", r)
				}
			}
			best = min(best, time.Since(began)/batch)
		}
		return best
	}
	tab := filled(list[batches*batch:])
	added, removed := cost(tab.Add), cost(tab.Remove)
	t.Logf("an addition takes %v, a removal %v", added, removed)
	if added > bar || removed > bar {
		t.Errorf("an update takes %v to add, %v to remove; the bar is %v", added, removed, bar)
	}
}
