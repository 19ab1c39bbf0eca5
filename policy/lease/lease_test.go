package lease

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

func pool(t testing.TB, network string, bits int) Pool {
	t.Helper()
	p, err := NewPool(netip.MustParsePrefix(network), bits)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func prefixes(s ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, p := range s {
		ps = append(ps, netip.MustParsePrefix(p))
	}
	return ps
}

func TestNewPool(t *testing.T) {
	for _, c := range []struct {
		network string
		bits    int
		size    int // 0: refused
	}{
		{"10.255.0.0/16", 24, 255},
		{"10.0.0.0/8", 24, 65535},
		{"10.0.0.0/8", 28, 1<<20 - 1},
		{"10.0.0.0/8", 29, 0}, // too many
		{"10.255.0.0/23", 24, 1},
		{"10.255.0.0/29", 30, 1},
		{"10.255.0.0/24", 24, 0},
		{"10.255.0.0/16", 31, 0},
		{"10.255.1.0/16", 24, 0}, // host bits
		{"10.255.0.0/30", 31, 0},
		{"fd00::/16", 24, 0},
	} {
		p, err := NewPool(netip.MustParsePrefix(c.network), c.bits)
		switch {
		case c.size == 0 && err == nil:
			t.Errorf("%s in /%d was taken", c.network, c.bits)
		case c.size != 0 && err != nil:
			t.Errorf("%s in /%d: %v", c.network, c.bits, err)
		case c.size != 0 && p.Size() != c.size:
			t.Errorf("%s in /%d: %d subnets, want %d", c.network, c.bits, p.Size(), c.size)
		}
	}
	if _, err := NewPool(netip.Prefix{}, 24); err == nil {
		t.Error("no network was taken")
	}
}

// The first and the last of the default network, as the original has them.
func TestSubnets(t *testing.T) {
	p := pool(t, "10.255.0.0/16", 24)
	for i, want := range map[int]string{0: "10.255.1.0/24", 76: "10.255.77.0/24", 254: "10.255.255.0/24"} {
		if got := p.Subnet(i); got.String() != want {
			t.Errorf("subnet %d is %s, want %s", i, got, want)
		}
	}
	for s, want := range map[string]bool{
		"10.255.1.0/24": true, "10.255.255.0/24": true,
		"10.255.0.0/24": false, "10.255.1.0/25": false, "10.255.2.0/23": false, "10.255.1.1/24": false,
		"10.254.1.0/24": false, "11.0.0.0/24": false, "fd00::/24": false,
	} {
		if got := p.Contains(netip.MustParsePrefix(s)); got != want {
			t.Errorf("contains %s: %v, want %v", s, got, want)
		}
	}
	for i := range p.Size() {
		if !p.Contains(p.Subnet(i)) {
			t.Errorf("subnet %d, %s, is not in its pool", i, p.Subnet(i))
		}
	}
}

func TestChoose(t *testing.T) {
	p := pool(t, "10.9.0.0/21", 24) // 1 to 7
	last := func(n int) int { return n - 1 }
	first := func(int) int { return 0 }
	for _, c := range []struct {
		name         string
		taken, avoid []netip.Prefix
		random       func(int) int
		want         string // "": exhausted
	}{
		{"lowest", nil, nil, first, "10.9.1.0/24"},
		{"highest", nil, nil, last, "10.9.7.0/24"},
		{"taken", prefixes("10.9.1.0/24", "10.9.3.0/24"), nil, first, "10.9.2.0/24"},
		{"the first subnet is none of the pool", prefixes("10.9.0.0/24"), nil, first, "10.9.1.0/24"},
		{"one address takes its subnet", prefixes("10.9.1.77/32"), nil, first, "10.9.2.0/24"},
		{"a larger one takes several", prefixes("10.9.0.0/22"), nil, first, "10.9.4.0/24"},
		{"elsewhere", prefixes("10.8.0.0/16", "fd00::/8", "192.0.2.0/24"), nil, first, "10.9.1.0/24"},
		{"avoided while others are free", nil, prefixes("10.9.1.0/24"), first, "10.9.2.0/24"},
		{"avoided is better than none", prefixes("10.9.2.0/23", "10.9.4.0/22"), prefixes("10.9.1.0/24"), first, "10.9.1.0/24"},
		{"all", prefixes("10.9.0.0/16"), nil, first, ""},
		{"all but the first subnet", prefixes("10.9.1.0/24", "10.9.2.0/23", "10.9.4.0/22"), nil, first, ""},
	} {
		got, err := p.Choose(c.taken, c.avoid, c.random)
		if c.want == "" {
			if !errors.Is(err, ErrExhausted) {
				t.Errorf("%s: %s, %v; want %v", c.name, got, err, ErrExhausted)
			}
			continue
		}
		if err != nil || got.String() != c.want {
			t.Errorf("%s: %s, %v; want %s", c.name, got, err, c.want)
		}
	}
}

// TestChooseAgainstOverlaps holds the marking by arithmetic against the obvious
// comparison with every subnet, on random prefixes.
func TestChooseAgainstOverlaps(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		bits := 20 + r.IntN(8)
		p := pool(t, "10.9.0.0/18", bits)
		var taken []netip.Prefix
		for range r.IntN(6) {
			a := netip.AddrFrom4([4]byte{10, byte(8 + r.IntN(3)), byte(r.IntN(256)), byte(r.IntN(256))})
			taken = append(taken, netip.PrefixFrom(a, 8+r.IntN(25)).Masked())
		}
		free := 0
		for i := range p.Size() {
			clash := false
			for _, o := range taken {
				clash = clash || o.Overlaps(p.Subnet(i))
			}
			if !clash {
				free++
			}
		}
		if got := p.Size() - p.Used(taken); got != free {
			t.Fatalf("/%d with %v: %d free, want %d", bits, taken, got, free)
		}
		if got, err := p.Choose(taken, nil, r.IntN); (err == nil) != (free > 0) || err == nil && !p.Contains(got) {
			t.Fatalf("/%d with %v, %d free: %s, %v", bits, taken, free, got, err)
		}
	}
}

func TestUsable(t *testing.T) {
	subnet := netip.MustParsePrefix("10.255.7.0/24")
	n := 0
	for i := range 256 {
		if Usable(subnet, netip.AddrFrom4([4]byte{10, 255, 7, byte(i)})) {
			n++
		}
	}
	if n != 254 {
		t.Errorf("%d usable addresses, want 254", n)
	}
	for _, bad := range []string{"10.255.7.0", "10.255.7.255", "10.255.8.1", "::ffff:10.255.7.1", "fd00::1"} {
		if Usable(subnet, netip.MustParseAddr(bad)) {
			t.Errorf("%s is usable in %s", bad, subnet)
		}
	}
	if Usable(subnet, netip.Addr{}) {
		t.Error("no address is usable")
	}
}

func TestGrace(t *testing.T) {
	for lifetime, want := range map[time.Duration]time.Duration{
		168 * time.Hour: 10 * time.Minute, time.Hour: 6 * time.Minute, time.Second: 100 * time.Millisecond,
	} {
		if got := Grace(lifetime); got != want {
			t.Errorf("grace of %s is %s, want %s", lifetime, got, want)
		}
	}
}
