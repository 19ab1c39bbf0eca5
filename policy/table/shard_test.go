package table

import (
	"math/rand/v2"
	"testing"

	"tulle/policy"
)

// No two of a rule's protocol and tags make one key, and none makes 0, though the
// seeds are drawn: the highest and lowest tags are those that could.
func TestKeysAreTheirRules(t *testing.T) {
	tags := []policy.Tag{1, 2, 0x7FFF, policy.MaxTag, 1<<17 + 1, tagLimit - 2, tagLimit - 1, Any}
	for range 50 {
		tab := New()
		seen := map[uint64]Rule{0: {}}
		for _, src := range tags {
			for _, dst := range tags {
				for _, proto := range []policy.Protocol{policy.TCP, policy.UDP} {
					key := tab.key(src, dst, proto)
					if other, twice := seen[key]; twice {
						t.Fatalf("%d -> %d %v has the key of %v", src, dst, proto, other)
					}
					seen[key] = Rule{Src: src, Dst: dst, Protocol: proto}
				}
				if other, twice := seen[tab.key(src, dst, 1)]; twice {
					t.Fatalf("%d -> %d of a protocol without rules has the key of %v", src, dst, other)
				}
			}
		}
	}
}

// A tag that no wire carries is no rule's, so that a key is one rule's.
func TestTagsOfMoreThan24Bits(t *testing.T) {
	tab := New()
	all := policy.PortRange{Start: 1, End: 65535}
	for _, r := range []Rule{{tagLimit, 2, policy.TCP, all}, {2, tagLimit, policy.TCP, all}, {Any - 1, 2, policy.UDP, all}} {
		if tab.Add(r) || tab.Lookup(r.Src, r.Dst, r.Protocol, 80) || tab.Remove(r) {
			t.Errorf("%v is kept", r)
		}
	}
	if r := (Rule{tagLimit - 1, Any, policy.TCP, all}); !tab.Add(r) || !tab.Lookup(r.Src, r.Dst, r.Protocol, 80) {
		t.Errorf("%v is not found", r)
	}
}

// Keys that all hash to one bucket are found all the same, beyond the last bucket
// too, and so are their lists.
func TestBucketsRunOver(t *testing.T) {
	for _, hash := range []uint64{0, 1<<(64-rootBits) - 1} { // the first bucket of a shard, the last
		var entries []entry
		for i := range uint64(64) {
			e := entry{key: (hash<<8 ^ i) & (1<<(64-rootBits) - 1), one: portsOf(policy.PortRange{Start: 80, End: 80 + uint16(i)})}
			if e.key == 0 {
				continue
			}
			if i%3 == 0 {
				e.list = spans{{1, 2, 2}, {5, 9, 9}, {70, 70, 70}}
			}
			entries = append(entries, e)
		}
		s := build(entries)
		for _, e := range entries {
			b, i := s.find(e.key)
			switch {
			case b == nil:
				t.Fatalf("key %x is not found", e.key)
			case e.list == nil && b.ranges[i] != e.one:
				t.Errorf("key %x has ports %v, want %v", e.key, b.ranges[i].domain(), e.one.domain())
			case e.list != nil && len(s.list(b.ranges[i]).spans()) != 3:
				t.Errorf("key %x has %v, want %v", e.key, s.list(b.ranges[i]).spans(), e.list)
			}
		}
		if b, _ := s.find(1 << 40); b != nil {
			t.Error("a key is found that is not there")
		}
		if got := len(s.gather(nil, 0)); got != len(entries) {
			t.Errorf("%d entries are gathered, want %d", got, len(entries))
		}
	}
}

// Whatever is regular about the tags, few keys are in a bucket that is searched:
// one app that all others call, one that calls all, each its neighbour.
func TestFewBucketsAreSearched(t *testing.T) {
	const n = 60_000
	r := rand.New(rand.NewPCG(18, 19))
	for name, pair := range map[string]func(i policy.Tag) (src, dst policy.Tag){
		"called by all": func(i policy.Tag) (src, dst policy.Tag) { return i, 7 },
		"calls all":     func(i policy.Tag) (src, dst policy.Tag) { return 7, i },
		"neighbours":    func(i policy.Tag) (src, dst policy.Tag) { return i, i + 1 },
		"by chance": func(policy.Tag) (src, dst policy.Tag) {
			return 1 + policy.Tag(r.Uint32N(65535)), 1 + policy.Tag(r.Uint32N(65535))
		},
	} {
		// A factor may be unlucky for one of these; not each of three.
		least := 100.0
		for range 3 {
			tab := New()
			for i := range policy.Tag(n) {
				src, dst := pair(1 + i)
				tab.Add(Rule{src, dst, policy.TCP, policy.PortRange{Start: 80, End: 80}})
			}
			searched := 0
			for i := range tab.root {
				s := shard{tab.root[i]}
				for _, e := range s.gather(nil, 0) {
					if b, _ := s.find(e.key); b.how >= odd {
						searched++
					}
				}
			}
			least = min(least, 100*float64(searched)/n)
		}
		t.Logf("%s: %.2f %% of keys are in such buckets", name, least)
		if least > 5 {
			t.Errorf("%s: %.1f %% of keys are in buckets that are searched, want few", name, least)
		}
	}
}
