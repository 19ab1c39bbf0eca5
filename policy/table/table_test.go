package table

import (
	"math/rand/v2"
	"runtime"
	"testing"

	"tulle/policy"
)

// rules makes n different rules between tags that are all in use, one in four a
// port range, as tags are given out: densely, from 1.
func rules(n int, r *rand.Rand) []Rule {
	tags := policy.Tag(min(n+2, int(policy.MaxTag)))
	seen := make(map[Rule]bool, n)
	list := make([]Rule, 0, n)
	for len(list) < n {
		rule := Rule{
			Src:      1 + policy.Tag(r.Uint32N(uint32(tags))),
			Dst:      1 + policy.Tag(r.Uint32N(uint32(tags))),
			Protocol: [...]policy.Protocol{policy.TCP, policy.UDP}[r.IntN(2)],
		}
		rule.Ports.Start = 1 + uint16(r.UintN(65000))
		rule.Ports.End = rule.Ports.Start
		if len(list)%4 == 0 {
			rule.Ports.End += uint16(1 + r.UintN(500))
		}
		if !seen[rule] {
			seen[rule] = true
			list = append(list, rule)
		}
	}
	return list
}

func filled(list []Rule) *Table {
	t := New()
	for _, r := range list {
		t.Add(r)
	}
	return t
}

func TestNothingIsAllowedByAnEmptyTable(t *testing.T) {
	tab := New()
	if tab.Lookup(1, 2, policy.TCP, 80) {
		t.Error("an empty table allows a flow")
	}
	if tab.Remove(Rule{1, 2, policy.TCP, policy.PortRange{Start: 80, End: 80}}) {
		t.Error("an empty table gave up a rule")
	}
	if tab.Len() != 0 || tab.Generation() != 0 {
		t.Errorf("empty: %d rules, generation %d", tab.Len(), tab.Generation())
	}
}

// What no policy makes is not kept and allows nothing, not even a port 0.
func TestRulesThatNoPolicyMakes(t *testing.T) {
	tab := New()
	all := policy.PortRange{Start: 1, End: 65535}
	for name, r := range map[string]Rule{
		"no source":      {0, 5, policy.TCP, all},
		"no destination": {5, 0, policy.TCP, all},
		"no ends":        {0, 0, policy.TCP, all},
		"icmp":           {5, 6, 1, all},
		"no protocol":    {5, 6, 0, all},
		"from port 0":    {5, 6, policy.TCP, policy.PortRange{Start: 0, End: 80}},
		"backwards":      {5, 6, policy.TCP, policy.PortRange{Start: 81, End: 80}},
	} {
		if tab.Add(r) || tab.Remove(r) {
			t.Errorf("%s: the rule is kept", name)
		}
		for _, port := range []uint16{0, 1, 80, 65535} {
			if tab.Lookup(r.Src, r.Dst, r.Protocol, port) {
				t.Errorf("%s: port %d is open", name, port)
			}
		}
	}
	if tab.Len() != 0 || tab.Generation() != 0 {
		t.Errorf("%d rules, generation %d, want an untouched table", tab.Len(), tab.Generation())
	}
	tab.Add(Rule{5, 6, policy.TCP, all})
	for port := range 1 << 16 {
		if got := tab.Lookup(5, 6, policy.TCP, uint16(port)); got != (port > 0) {
			t.Errorf("a rule for all ports: port %d is %v", port, got)
		}
	}
}

func TestAnyIsADestinationOfItsOwn(t *testing.T) {
	tab := New()
	tab.Add(Rule{7, Any, policy.UDP, policy.PortRange{Start: 53, End: 60}})
	for _, c := range []struct {
		name string
		dst  policy.Tag
		port uint16
		want bool
	}{
		{"any in range", Any, 55, true}, {"any out of range", Any, 61, false},
		{"a tag is not any", 9, 55, false}, {"the highest tag is not any", policy.MaxTag, 55, false},
	} {
		if got := tab.Lookup(7, c.dst, policy.UDP, c.port); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestOverlappingRangesAreRemovedOneByOne(t *testing.T) {
	tab := New()
	rule := func(start, end uint16) Rule {
		return Rule{1, 2, policy.TCP, policy.PortRange{Start: start, End: end}}
	}
	open := func() (list []uint16) {
		for p := range 100 {
			if tab.Lookup(1, 2, policy.TCP, uint16(p)) {
				list = append(list, uint16(p))
			}
		}
		return list
	}
	count := func(step string, want int) {
		t.Helper()
		if got := open(); len(got) != want {
			t.Errorf("%s: %d ports are open, want %d: %v", step, len(got), want, got)
		}
	}
	tab.Add(rule(10, 50))
	tab.Add(rule(20, 30))
	tab.Add(rule(20, 60))
	tab.Add(rule(70, 70))
	count("all four", 52)
	if tab.Add(rule(20, 30)) {
		t.Error("the same rule was added twice")
	}
	if tab.Remove(rule(20, 31)) {
		t.Error("a rule that is not there was removed")
	}
	tab.Remove(rule(20, 60))
	count("without 20-60", 42)
	tab.Remove(rule(10, 50))
	count("without 10-50", 12)
	tab.Remove(rule(20, 30))
	count("without 20-30", 1)
	tab.Remove(rule(70, 70))
	count("without any", 0)
	if tab.Len() != 0 || tab.Generation() != 8 {
		t.Errorf("%d rules, generation %d, want 0 and 8: four added, four removed", tab.Len(), tab.Generation())
	}
}

// A table that was a million rules and is empty holds on to nothing.
func TestMemoryFollowsTheRules(t *testing.T) {
	const million, bar = 1_000_000, 64 << 20
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // the first may leave what it found during its own mark
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	list := rules(million, rand.New(rand.NewPCG(1, 2)))
	before := heap()
	tab := filled(list)
	full := heap() - before
	t.Logf("%d rules take %.1f MiB, %.1f bytes each", tab.Len(), float64(full)/(1<<20), float64(full)/million)
	if tab.Len() != million || full > bar {
		t.Errorf("%d rules take %d bytes, the bar is %d", tab.Len(), full, bar)
	}
	for _, r := range list {
		if !tab.Remove(r) {
			t.Fatalf("%v is not there", r)
		}
	}
	if empty := heap() - before; tab.Len() != 0 || int64(empty) > 1<<20 {
		t.Errorf("%d rules left, %d bytes", tab.Len(), int64(empty))
	}
	runtime.KeepAlive(list)
}

func TestLookupDoesNotAllocate(t *testing.T) {
	list := rules(10_000, rand.New(rand.NewPCG(3, 4)))
	tab := filled(list)
	i, allowed := 0, 0
	if n := testing.AllocsPerRun(20_000, func() {
		r := &list[i%len(list)]
		i++
		if tab.Lookup(r.Src, r.Dst, r.Protocol, r.Ports.End) {
			allowed++
		}
		if tab.Lookup(r.Dst, r.Src, 0, r.Ports.End) {
			allowed = -1 << 30
		}
	}); n != 0 {
		t.Errorf("%v allocations a lookup, want none", n)
	}
	if allowed != i {
		t.Errorf("%d of %d flows are allowed", allowed, i)
	}
}
