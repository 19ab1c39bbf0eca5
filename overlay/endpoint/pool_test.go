package endpoint

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

func pool(t *testing.T, subnet string) *Pool {
	t.Helper()
	p, err := NewPool(netip.MustParsePrefix(subnet))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func take(t *testing.T, p *Pool, now time.Duration) netip.Addr {
	t.Helper()
	a, err := p.Take(now)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestPoolIsTheLeaseLessItsEnds(t *testing.T) {
	p := pool(t, "10.255.7.0/24")
	for i := 1; i <= 254; i++ {
		if got, want := take(t, p, 0), netip.AddrFrom4([4]byte{10, 255, 7, byte(i)}); got != want {
			t.Fatalf("address %d is %s, want %s", i, got, want)
		}
	}
	if _, err := p.Take(time.Hour); !errors.Is(err, ErrPoolEmpty) {
		t.Errorf("got %v, want ErrPoolEmpty", err)
	}
}

func TestPoolRest(t *testing.T) {
	const freed = 100 * time.Second
	cases := []struct {
		name     string
		gone     uint64 // revision of the detach; 0: not known
		floor    uint64
		after    time.Duration
		eligible bool
	}{
		{"acknowledged, just before a minute", 5, 5, MinRest - 1, false},
		{"acknowledged, a minute", 5, 5, MinRest, true},
		{"not acknowledged, a minute", 5, 4, MinRest, false},
		{"not acknowledged, just before ten", 5, 4, MaxRest - 1, false},
		{"not acknowledged, ten minutes", 5, 4, MaxRest, true},
		{"revision unknown, a minute", 0, 9, MinRest, false},
		{"revision unknown, ten minutes", 0, 9, MaxRest, true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p := pool(t, "10.255.7.0/30") // .1 and .2
			a, b := take(t, p, 0), take(t, p, 0)
			p.Put(a, freed)
			if c.gone != 0 {
				p.Gone(a, 5)
			}
			switch c.floor {
			case 4:
				p.Floor(4)
			case 5:
				p.Floor(5)
			case 9:
				p.Floor(9)
			}
			got, err := p.Take(freed + c.after)
			if (err == nil) != c.eligible || err == nil && got != a {
				t.Errorf("took %v, %v; eligible is %t (%s is in use)", got, err, c.eligible, b)
			}
		})
	}
}

// The one freed first comes back first, unless it still has to wait and another
// has not.
func TestPoolIsAQueue(t *testing.T) {
	p := pool(t, "10.255.7.0/29")
	var a []netip.Addr
	for range 6 {
		a = append(a, take(t, p, 0))
	}
	for _, i := range []int{3, 0, 5} {
		p.Put(a[i], 0)
		p.Gone(a[i], 7)
	}
	p.Put(a[1], 0) // nobody confirms its end
	p.Put(a[2], 0)
	p.Gone(a[2], 7)
	p.Floor(7)
	for _, i := range []int{3, 0, 5, 2} {
		if got := take(t, p, MinRest); got != a[i] {
			t.Errorf("got %s, want %s", got, a[i])
		}
	}
	if _, err := p.Take(MinRest); err == nil {
		t.Error("took what nobody confirmed")
	}
}

func TestPoolPutTwiceIsOnce(t *testing.T) {
	p := pool(t, "10.255.7.0/30")
	a := take(t, p, 0)
	p.Put(a, 0)
	p.Put(a, 0)
	p.Put(netip.MustParseAddr("192.0.2.1"), 0)
	if inUse, rest, free := p.Counts(0); inUse != 0 || rest != 1 || free != 1 {
		t.Errorf("%d in use, %d rest, %d free", inUse, rest, free)
	}
}

// No sequence of calls gives one address to two, loses one, or gives one out
// before its rest.
func TestPoolAtRandom(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	p := pool(t, "10.255.7.0/27")
	const size = 30
	now := time.Duration(0)
	held, freedAt := map[netip.Addr]bool{}, map[netip.Addr]time.Duration{}
	for range 20000 {
		now += time.Duration(rng.IntN(20)) * time.Second
		if rng.IntN(2) == 0 {
			a, err := p.Take(now)
			if err != nil {
				continue
			}
			if at, was := freedAt[a]; held[a] || was && now-at < MinRest {
				t.Fatalf("%s given out: held %t, freed %s ago", a, held[a], now-at)
			}
			held[a] = true
			continue
		}
		for a := range held {
			p.Put(a, now)
			if rng.IntN(2) == 0 {
				p.Gone(a, 1)
			}
			delete(held, a)
			freedAt[a] = now
			break
		}
		if rng.IntN(4) == 0 {
			p.Floor(1)
		}
		if inUse, rest, free := p.Counts(now); inUse != len(held) || inUse+rest+free != size {
			t.Fatalf("%d in use of %d held, %d rest, %d free", inUse, len(held), rest, free)
		}
	}
}

func TestNewPoolRefuses(t *testing.T) {
	for _, s := range []string{"10.255.7.0/31", "10.0.0.0/8", "fd00::/64"} {
		if _, err := NewPool(netip.MustParsePrefix(s)); err == nil {
			t.Errorf("took %s", s)
		}
	}
}

func TestAskForAnAddress(t *testing.T) {
	p := pool(t, "10.255.7.0/29") // .1 to .6
	at := func(last byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 255, 7, last}) }
	if err := p.Ask(at(4), 0); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		addr netip.Addr
		want error
	}{{"in use", at(4), ErrNoAddress}, {"the cell's own", at(0), ErrNoAddress}, {"another lease's", netip.MustParseAddr("10.255.8.1"), ErrNoAddress}, {"no address", netip.Addr{}, ErrNoAddress}} {
		if err := p.Ask(c.addr, 0); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	for _, want := range []byte{1, 2, 3, 5, 6} {
		if got := take(t, p, 0); got != at(want) {
			t.Errorf("took %s, want %s: it was asked for already, or the order is another", got, at(want))
		}
	}
	p.Put(at(4), 10*time.Second)
	if err := p.Ask(at(4), 10*time.Second+MaxRest-1); !errors.Is(err, ErrResting) {
		t.Errorf("of an address that rests: %v", err)
	}
	if err := p.Ask(at(4), 10*time.Second+MaxRest); err != nil {
		t.Errorf("of one that has rested: %v", err)
	}
}
