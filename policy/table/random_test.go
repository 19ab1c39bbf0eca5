package table

import (
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"tulle/policy"
)

// world is a table beside the plain list it must answer like: place says where
// in it a rule is, and policies is the same list for the evaluator.
type world struct {
	table    *Table
	rules    []Rule
	policies []policy.Policy
	place    map[Rule]int
}

func newWorld() *world { return &world{table: New(), place: make(map[Rule]int)} }

func app(tag policy.Tag) policy.AppID { return policy.AppID(strconv.Itoa(int(tag))) }

// allowed asks the evaluator. No app is without a tag, so NoTag is nobody's.
func (w *world) allowed(src, dst policy.Tag, proto policy.Protocol, port uint16) bool {
	return policy.Allowed(w.policies, app(src), app(dst), proto, port)
}

func (w *world) add(t *testing.T, r Rule) {
	t.Helper()
	_, there := w.place[r]
	before := w.table.Generation()
	if added := w.table.Add(r); added == there {
		t.Fatalf("add %v: %v, but there before: %v", r, added, there)
	}
	if !there {
		w.place[r] = len(w.rules)
		w.rules = append(w.rules, r)
		w.policies = append(w.policies, policy.Policy{Source: app(r.Src), Destination: app(r.Dst), Protocol: r.Protocol, Ports: r.Ports})
	}
	w.check(t, before, !there)
}

func (w *world) remove(t *testing.T, r Rule) {
	t.Helper()
	i, there := w.place[r]
	before := w.table.Generation()
	if removed := w.table.Remove(r); removed != there {
		t.Fatalf("remove %v: %v, but there before: %v", r, removed, there)
	}
	if there {
		last := w.rules[len(w.rules)-1]
		w.rules[i], w.policies[i], w.place[last] = last, w.policies[len(w.rules)-1], i
		w.rules, w.policies = w.rules[:len(w.rules)-1], w.policies[:len(w.rules)-1]
		delete(w.place, r)
	}
	w.check(t, before, there)
}

func (w *world) check(t *testing.T, before uint64, changed bool) {
	t.Helper()
	if w.table.Len() != len(w.rules) {
		t.Fatalf("%d rules, want %d", w.table.Len(), len(w.rules))
	}
	if moved := w.table.Generation() > before; moved != changed {
		t.Fatalf("the generation went from %d to %d, a change: %v", before, w.table.Generation(), changed)
	}
}

// near draws from a world so small that rules collide, overlap and share pairs.
func near(r *rand.Rand) Rule {
	tag := func() policy.Tag {
		if r.IntN(20) == 0 {
			return Any
		}
		return 1 + policy.Tag(r.UintN(6))
	}
	start := 1 + uint16(r.UintN(40))
	return Rule{tag(), tag(), [...]policy.Protocol{policy.TCP, policy.UDP}[r.IntN(2)],
		policy.PortRange{Start: start, End: start + uint16(r.UintN(8))*uint16(r.UintN(2))}}
}

// The table answers as the evaluator does, whatever was added and removed in
// whatever order; for every pair, protocol and port of a small world.
func TestTableAgreesWithTheEvaluator(t *testing.T) {
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 11))
		w := newWorld()
		for step := range 1200 {
			rule := near(r)
			if grow := step%400 < 200; grow != (r.IntN(4) == 0) {
				w.add(t, rule)
			} else {
				if len(w.rules) > 0 && r.IntN(2) == 0 {
					rule = w.rules[r.IntN(len(w.rules))]
				}
				w.remove(t, rule)
			}
			for range 6 {
				q := near(r)
				port := q.Ports.Start - 1 + uint16(r.UintN(3))
				want := w.allowed(q.Src, q.Dst, q.Protocol, port)
				if got := w.table.Lookup(q.Src, q.Dst, q.Protocol, port); got != want {
					t.Fatalf("seed %d, step %d: %d -> %d %v %d: %v, the evaluator says %v", seed, step, q.Src, q.Dst, q.Protocol, port, got, want)
				}
			}
		}
		for src := range policy.Tag(8) {
			for dst := range policy.Tag(8) {
				for _, proto := range []policy.Protocol{0, 1, policy.TCP, policy.UDP, 255} {
					for _, port := range []uint16{0, 1, 20, 40, 47, 48, 65535} {
						if got, want := w.table.Lookup(src, dst, proto, port), w.allowed(src, dst, proto, port); got != want {
							t.Fatalf("seed %d: %d -> %d %v %d: %v, the evaluator says %v", seed, src, dst, proto, port, got, want)
						}
					}
				}
			}
		}
		for len(w.rules) > 0 {
			w.remove(t, w.rules[r.IntN(len(w.rules))])
		}
	}
}

// A world of many shards, splitting and joining: every rule is found, and what
// is next to it is not, at each size on the way up and down.
func TestManyRules(t *testing.T) {
	r := rand.New(rand.NewPCG(12, 13))
	w := newWorld()
	list := rules(60_000, r)
	steps := 0
	probe := func() {
		if steps++; steps%97 != 0 || len(w.rules) == 0 {
			return
		}
		for range 20 {
			rule := w.rules[r.IntN(len(w.rules))]
			if !w.table.Lookup(rule.Src, rule.Dst, rule.Protocol, rule.Ports.Start) || !w.table.Lookup(rule.Src, rule.Dst, rule.Protocol, rule.Ports.End) {
				t.Fatalf("%v is not found among %d", rule, len(w.rules))
			}
			absent := list[r.IntN(len(list))]
			absent.Dst += 1 << 17 // no rule is there
			if w.table.Lookup(absent.Src, absent.Dst, absent.Protocol, absent.Ports.Start) {
				t.Fatalf("%v is found, but was never added", absent)
			}
		}
	}
	for _, rule := range list {
		w.add(t, rule)
		probe()
	}
	for i, rule := range list {
		if !w.table.Lookup(rule.Src, rule.Dst, rule.Protocol, rule.Ports.End) {
			t.Fatalf("rule %d, %v, is not found", i, rule)
		}
	}
	r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	for _, rule := range list {
		w.remove(t, rule)
		probe()
	}
}

// One pair with very many ranges is searched, not walked, and stays exact.
func TestOnePairWithManyRanges(t *testing.T) {
	r := rand.New(rand.NewPCG(14, 15))
	tab := New()
	var all []policy.Policy
	for len(all) < 2000 {
		start := 1 + uint16(r.UintN(60_000))
		p := policy.PortRange{Start: start, End: start + uint16(r.UintN(30))}
		if tab.Add(Rule{3, 4, policy.UDP, p}) {
			all = append(all, policy.Policy{Source: "a", Destination: "b", Protocol: policy.UDP, Ports: p})
		}
	}
	for port := range 1 << 16 {
		got := tab.Lookup(3, 4, policy.UDP, uint16(port))
		if port%7 == 0 && got != policy.Allowed(all, "a", "b", policy.UDP, uint16(port)) {
			t.Fatalf("port %d: %v, the evaluator disagrees", port, got)
		}
	}
}

// Readers go on while one writer fills and empties the table again and again,
// through splits, joins and doublings of directories. A rule that nobody removes
// is seen by every lookup; one that nobody adds by none; and after Remove has
// returned, its rule by none that begins.
func TestReadersAreUndisturbed(t *testing.T) {
	r := rand.New(rand.NewPCG(16, 17))
	list := rules(13_000, r)
	for i := range list {
		list[i].Protocol = policy.TCP // half of the regions, so that they fill
	}
	stay, come := list[:500], list[500:]
	tab := filled(stay)

	var stop atomic.Bool
	var lookups atomic.Int64
	var readers sync.WaitGroup
	for n := range 3 {
		readers.Go(func() {
			for i := n; !stop.Load(); i++ {
				rule := stay[i%len(stay)]
				if !tab.Lookup(rule.Src, rule.Dst, rule.Protocol, rule.Ports.End) {
					t.Errorf("%v, which nobody removes, was not seen", rule)
					return
				}
				if tab.Lookup(rule.Src, rule.Dst+1<<17, rule.Protocol, rule.Ports.End) {
					t.Errorf("%v, which nobody adds, was seen", rule)
					return
				}
				lookups.Add(1)
			}
		})
	}
	deepest := 0
	for round := 0; round < 2 || lookups.Load() < 10_000; round++ {
		for _, rule := range come {
			tab.Add(rule)
			if !tab.Lookup(rule.Src, rule.Dst, rule.Protocol, rule.Ports.End) {
				t.Fatalf("%v is not seen after Add has returned", rule)
			}
		}
		deepest = max(deepest, depth(tab))
		for _, rule := range come {
			tab.Remove(rule)
		}
		if tab.Len() != len(stay) {
			t.Fatalf("%d rules are left, want %d", tab.Len(), len(stay))
		}
	}
	stop.Store(true)
	readers.Wait()
	if deepest < 2 {
		t.Errorf("no shard had more than %d buckets: none has grown", 1<<deepest)
	}
}

// depth is that of the largest shard.
func depth(tab *Table) (d int) {
	for i := range tab.root {
		d = max(d, shard{tab.root[i]}.depth())
	}
	return d
}

// FuzzTable: the bytes are a program of additions, removals and lookups; the
// table and the evaluator agree after each step.
func FuzzTable(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 1, 1, 2, 3, 4})
	f.Add([]byte("additions and removals of overlapping ranges"))
	f.Fuzz(func(t *testing.T, program []byte) {
		w := newWorld()
		for len(program) >= 5 && len(w.rules) < 100 {
			op, b := program[0], program[1:5]
			program = program[5:]
			r := Rule{1 + policy.Tag(b[0]%4), 1 + policy.Tag(b[1]%4), policy.TCP, policy.PortRange{Start: 1 + uint16(b[2]), End: 1 + uint16(b[2]) + uint16(b[3])}}
			if op&1 == 0 {
				w.add(t, r)
			} else {
				w.remove(t, r)
			}
			for _, port := range []uint16{r.Ports.Start - 1, r.Ports.Start, r.Ports.End, r.Ports.End + 1} {
				if got, want := w.table.Lookup(r.Src, r.Dst, r.Protocol, port), w.allowed(r.Src, r.Dst, r.Protocol, port); got != want {
					t.Fatalf("%v, port %d: %v, the evaluator says %v", r, port, got, want)
				}
			}
		}
	})
}
