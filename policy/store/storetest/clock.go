package storetest

import (
	"net/netip"
	"testing"
	"time"

	"tulle/policy/api"
)

var (
	silkAddress = netip.MustParseAddr("192.0.2.9")
	silkSubnet  = netip.MustParsePrefix("10.255.9.0/24")
)

// clockTests: the machine's clock is set, by much, forwards and back.
var clockTests = map[string]func(*testing.T, Open){
	"a lease lasts as long as it lasts, whatever the clock says": func(t *testing.T, open Open) {
		var passed time.Duration
		f := start(t, open, func(c *Config) { c.Elapsed = func() time.Duration { return passed } })
		pass := func(d time.Duration) {
			passed += d
			f.clock.Advance(d)
		}
		held := leaseOf(t, f, "cell-1", 1)
		renew := func() api.Lease {
			t.Helper()
			l, err := f.Lease(t.Context(), "cell-1", api.LeaseRequest{Underlay: netip.MustParseAddr("192.0.2.1"), Port: 4789,
				Mode: api.ModeVXLAN, Subnet: held.Subnet, Generation: held.Generation})
			f.must(err)
			return l
		}
		f.must(f.AddPeer(t.Context(), api.Peer{Name: "silk", Underlay: silkAddress, Subnet: silkSubnet}))
		alive := func(step string, want int) {
			t.Helper()
			_, err := f.Expire(t.Context())
			f.must(err)
			if got := len(f.state().Peers); got != want {
				t.Fatalf("%s: %d peers, want %d", step, got, want)
			}
		}
		for _, by := range []time.Duration{1000 * time.Hour, -3000 * time.Hour, 50 * 365 * 24 * time.Hour} {
			f.clock.Advance(by)
			// Before anybody has noticed, and after.
			for _, step := range []string{"at once", "later"} {
				if again := renew(); again.Generation != held.Generation || again.Subnet != held.Subnet {
					t.Fatalf("clock set by %s, %s: renewed as %+v, was %+v", by, step, again, held)
				}
				alive(by.String()+", "+step, 2)
			}
			cells, err := f.Cells(t.Context())
			f.must(err)
			for _, c := range cells {
				left := c.Expires.Sub(f.clock.Now())
				if c.Name == "cell-1" && (left < 168*time.Hour || left > 169*time.Hour) || c.Name == "silk" && !c.Expires.IsZero() {
					t.Errorf("clock set by %s: %s expires %s, in %s", by, c.Name, c.Expires, left)
				}
			}
			pass(time.Hour)
			f.reopen() // the next server goes by the machine's clock
			alive("opened again", 2)
			renew()
		}
		// Set back while the lease runs out, it runs out all the same.
		f.clock.Advance(-500 * time.Hour)
		pass(170 * time.Hour)
		alive("after its time", 1)
	},
}
