package lease

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"
)

func TestSinglesAreTheFirstBlockButForItsBase(t *testing.T) {
	p, err := NewPool(netip.MustParsePrefix("10.255.0.0/16"), 24)
	if err != nil {
		t.Fatal(err)
	}
	if got := p.Singles(); got != 255 {
		t.Errorf("%d single addresses, want 255", got)
	}
	first, last := p.Single(0), p.Single(254)
	if first.String() != "10.255.0.1/32" || last.String() != "10.255.0.255/32" {
		t.Errorf("from %s to %s, want 10.255.0.1/32 to 10.255.0.255/32", first, last)
	}
	for s, want := range map[string]bool{
		"10.255.0.1/32": true, "10.255.0.255/32": true,
		"10.255.0.0/32": false, "10.255.1.0/32": false, "10.255.0.9/24": false, "10.254.0.9/32": false, "::1/128": false,
	} {
		if got := p.ContainsSingle(netip.MustParsePrefix(s)); got != want {
			t.Errorf("%s is a single-IP lease: %v, want %v", s, got, want)
		}
	}
}

func TestChooseSilk(t *testing.T) {
	p, err := NewPool(netip.MustParsePrefix("10.9.0.0/28"), 30) // blocks .4, .8, .12; singles .1, .2, .3
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name          string
		single        bool
		held, expired []netip.Prefix
		want          string // "": exhausted
	}{
		{"the one that is free", false, prefixes("10.9.0.4/30", "10.9.0.9/32"), nil, "10.9.0.12/30"},
		{"free before expired", false, prefixes("10.9.0.4/30"), prefixes("10.9.0.12/30"), "10.9.0.8/30"},
		{"the oldest expired", false, prefixes("10.9.0.4/30"), prefixes("10.9.0.12/30", "10.9.0.8/30"), "10.9.0.12/30"},
		{"expired ones of the other kind do not count", false, prefixes("10.9.0.4/30", "10.9.0.8/30"), prefixes("10.9.0.1/32", "10.9.0.12/30"), "10.9.0.12/30"},
		{"none", false, prefixes("10.9.0.0/28"), nil, ""},
		{"a free single", true, prefixes("10.9.0.1/32", "10.9.0.3/32", "10.9.0.4/30"), nil, "10.9.0.2/32"},
		{"the oldest expired single", true, prefixes("10.9.0.1/32"), prefixes("10.9.0.4/30", "10.9.0.3/32", "10.9.0.2/32"), "10.9.0.3/32"},
		{"no single in a block that a peer holds", true, prefixes("10.9.0.0/30"), prefixes("10.9.0.1/32"), ""},
	} {
		got, err := p.ChooseSilk(tt.single, tt.held, tt.expired, rand.IntN)
		if tt.want == "" {
			if !errors.Is(err, ErrExhausted) {
				t.Errorf("%s: %s, %v, want %v", tt.name, got, err, ErrExhausted)
			}
			continue
		}
		if err != nil || got.String() != tt.want {
			t.Errorf("%s: %s, %v, want %s", tt.name, got, err, tt.want)
		}
	}
}

func TestChooseSilkReachesEveryOne(t *testing.T) {
	p, err := NewPool(netip.MustParsePrefix("10.9.0.0/28"), 30)
	if err != nil {
		t.Fatal(err)
	}
	for _, single := range []bool{false, true} {
		var held []netip.Prefix
		for range 3 {
			s, err := p.ChooseSilk(single, held, nil, rand.IntN)
			if err != nil || !p.Of(s, single) || overlapsAny(s, held) {
				t.Fatalf("after %v: %s, %v", held, s, err)
			}
			held = append(held, s)
		}
		if s, err := p.ChooseSilk(single, held, nil, rand.IntN); !errors.Is(err, ErrExhausted) {
			t.Errorf("after %v: %s, %v, want %v", held, s, err, ErrExhausted)
		}
	}
}

func TestHardware(t *testing.T) {
	for subnet, want := range map[string]string{
		"10.255.77.0/24": "ee:ee:0a:ff:4d:00",
		"10.255.0.9/32":  "ee:ee:0a:ff:00:09",
	} {
		if got := Hardware(netip.MustParsePrefix(subnet)); got != want {
			t.Errorf("of %s: %s, want %s", subnet, got, want)
		}
	}
}
