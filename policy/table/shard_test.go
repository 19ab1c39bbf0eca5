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
func TestTagsOfMoreThan22Bits(t *testing.T) {
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
	// What is cut off of a tag makes it no other.
	for _, r := range []Rule{{5, 6, policy.TCP, all}, {5, Any, policy.TCP, all}, {Any, 6, policy.TCP, all}} {
		tab.Add(r)
		for high := policy.Tag(1 << tagBits); high != 0; high <<= 1 {
			if r.Src != Any && tab.Lookup(r.Src|high, r.Dst, policy.TCP, 80) || r.Dst != Any && tab.Lookup(r.Src, r.Dst|high, policy.TCP, 80) {
				t.Errorf("%v is found with a tag that has a bit %x more", r, high)
			}
		}
	}
	if tab.Lookup(policy.NoTag, 6, policy.TCP, 80) || tab.Lookup(5, policy.NoTag, policy.TCP, 80) {
		t.Error("no tag is found")
	}
}

// A slot answers for its own hash and ports and no others, whichever they are.
func TestSlotsAllowTheirPorts(t *testing.T) {
	var hashes []uint64
	for _, h := range []uint64{0, 1, 2, 1 << 30, 1<<31 - 2, 1<<31 - 1} {
		hashes = append(hashes, h<<hashShift)
	}
	strange := hashes // and those that no rule has
	for _, h := range hashes {
		strange = append(strange, h|1<<(hashShift-1))
	}
	ports := []uint16{1, 2, 80, 1<<15 - 1, 1 << 15, 65534, 65535}
	for _, h := range hashes {
		for i, start := range ports {
			for _, end := range ports[i:] {
				r := policy.PortRange{Start: start, End: end}
				s := slotOf(h, r)
				if s == 0 || s.hash() != h || s.ports() != r {
					t.Fatalf("%x %v becomes %x: %x %v", h, r, s, s.hash(), s.ports())
				}
				for _, asked := range strange {
					for port := range 1 << 16 {
						want := asked == h && uint16(port) >= start && uint16(port) <= end
						if s.allows(asked, uint16(port)) != want {
							t.Fatalf("%x %v allows port %d of %x: %t, want %t", h, r, port, asked, !want, want)
						}
					}
				}
			}
		}
	}
	for _, h := range strange {
		for factor := slot(0); factor < factors; factor += 0x9E3779 { // 0: an empty slot
			if factor != 0 && home(h, factor) != how {
				continue // h does not lead to it
			}
			for _, port := range ports {
				if factor.allows(h, port) {
					t.Fatalf("%x allows port %d of %x", factor, port, h)
				}
			}
		}
	}
}

// Keys that all hash to one bucket are found all the same, beyond the last bucket
// too, and so are their lists.
func TestBucketsRunOver(t *testing.T) {
	for _, first := range []uint64{0, (1<<31 - 64) << hashShift} { // the first bucket of a shard, the last
		var entries []entry
		for i := range uint64(64) {
			e := entry{hash: first + i<<hashShift, one: policy.PortRange{Start: 80, End: 80 + uint16(i)}}
			if i%3 == 0 {
				e.list = spans{{1, 2, 2}, {5, 9, 9}, {70, 70, 70}}
			}
			entries = append(entries, e)
		}
		s := build(entries)
		for _, e := range entries {
			b, i := s.find(e.hash)
			switch {
			case b == nil:
				t.Fatalf("hash %x is not found", e.hash)
			case e.list == nil && b[i].ports() != e.one:
				t.Errorf("hash %x has ports %v, want %v", e.hash, b[i].ports(), e.one)
			case e.list != nil && len(s.list(b[i].at()).spans()) != 3:
				t.Errorf("hash %x has %v, want %v", e.hash, s.list(b[i].at()).spans(), e.list)
			}
		}
		if b, _ := s.find(1 << 60); b != nil {
			t.Error("a hash is found that is not there")
		}
		if got := len(s.gather(nil, 1)); got != len(entries) {
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
				for _, e := range s.gather(nil, 1) {
					if b, _ := s.find(e.hash); b[how] >= odd {
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
