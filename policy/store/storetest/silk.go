package storetest

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"tulle/policy/api"
	"tulle/policy/store"
)

func (f *fixture) acquire(underlay string, single bool) store.SilkLease {
	f.t.Helper()
	l, err := f.AcquireSilk(f.t.Context(), netip.MustParseAddr(underlay), single)
	f.must(err)
	return l
}

func (f *fixture) silkLeases() []store.SilkLease {
	f.t.Helper()
	ls, err := f.SilkLeases(f.t.Context())
	f.must(err)
	return ls
}

// tiny has three blocks (10.9.0.4, .8 and .12) and three single addresses.
func tiny(c *Config) {
	c.Lease = store.LeaseConfig{Network: netip.MustParsePrefix("10.9.0.0/28"), Bits: 30, Lifetime: time.Hour}
}

func silkLease(underlay, subnet string) store.SilkLease {
	return store.SilkLease{Underlay: netip.MustParseAddr(underlay), Subnet: netip.MustParsePrefix(subnet)}
}

var silkTests = map[string]func(*testing.T, Open){
	"a silk lease is a peer of every cell, by its revision": func(t *testing.T, open Open) {
		f := start(t, open)
		l := f.acquire("192.0.2.11", false)
		peer := api.Peer{Name: "silk:192.0.2.11", Kind: api.KindSilk, Mode: api.ModeVXLAN, Port: 4789,
			Underlay: netip.MustParseAddr("192.0.2.11"), Subnet: l.Subnet, Generation: 1}
		same(t, "change", f.since(0), []api.Delta{{Revision: 1, PeersSet: []api.Peer{peer}}})
		same(t, "the same again", f.acquire("192.0.2.11", true), l)
		f.must(f.RenewSilk(t.Context(), l))
		s := f.state()
		same(t, "peers", s.Peers, []api.Peer{peer})
		if s.Revision != 1 {
			t.Errorf("acquiring and renewing what is held made revision %d", s.Revision)
		}
		f.must(f.ReleaseSilk(t.Context(), l.Underlay))
		f.must(f.ReleaseSilk(t.Context(), l.Underlay))
		same(t, "release", f.since(1), []api.Delta{{Revision: 2, PeersRemoved: []string{"silk:192.0.2.11"}}})
		same(t, "peers", f.state().Peers, []api.Peer{})
	},
	"blocks and single addresses come from the pool that cells lease from": func(t *testing.T, open Open) {
		f := start(t, open, tiny)
		cell := f.lease("c1", at("192.0.2.1:4789"))
		seen := map[netip.Prefix]bool{cell.Subnet: true}
		for i := range 2 {
			l := f.acquire(fmt.Sprintf("192.0.2.%d", 11+i), false)
			if seen[l.Subnet] || l.Subnet.Bits() != 30 || l.Subnet.Addr() == cell.Network.Addr() {
				t.Errorf("block %s after %v", l.Subnet, seen)
			}
			seen[l.Subnet] = true
		}
		for i := range 3 {
			l := f.acquire(fmt.Sprintf("192.0.2.%d", 21+i), true)
			if seen[l.Subnet] || l.Subnet.Bits() != 32 || !netip.MustParsePrefix("10.9.0.0/30").Contains(l.Subnet.Addr()) {
				t.Errorf("single address %s after %v", l.Subnet, seen)
			}
			seen[l.Subnet] = true
		}
		for _, single := range []bool{false, true} {
			if _, err := f.AcquireSilk(t.Context(), netip.MustParseAddr("192.0.2.99"), single); !errors.Is(err, store.ErrNoLease) {
				t.Errorf("one more, single %v: %v, want %v", single, err, store.ErrNoLease)
			}
		}
		if _, err := f.Lease(t.Context(), "c2", at("192.0.2.2:4789")); !errors.Is(err, store.ErrNoLease) {
			t.Errorf("one more cell: %v, want %v", err, store.ErrNoLease)
		}
		if n := len(f.silkLeases()); n != 6 {
			t.Errorf("%d leases, want 6", n)
		}
	},
	"expired silk leases leave the list and are reused oldest first": func(t *testing.T, open Open) {
		f := start(t, open, tiny)
		var first []store.SilkLease
		for i := range 3 {
			first = append(first, f.acquire(fmt.Sprintf("192.0.2.%d", 11+i), false))
			f.clock.Advance(time.Minute)
		}
		f.must(f.RenewSilk(t.Context(), first[0])) // now the second is the oldest
		f.clock.Advance(59*time.Minute - time.Second)
		same(t, "leases", f.silkLeases(), []store.SilkLease{first[0], first[2]})
		next, err := f.Expire(t.Context())
		f.must(err)
		if want := f.clock.Now().Add(time.Second); !next.Equal(want) {
			t.Errorf("next expiry at %s, want %s", next, want)
		}
		same(t, "removed", f.since(3), []api.Delta{{Revision: 4, PeersRemoved: []string{"silk:192.0.2.12"}}})
		f.clock.Advance(time.Hour)
		for i, want := range []netip.Prefix{first[1].Subnet, first[2].Subnet, first[0].Subnet} {
			if got := f.acquire(fmt.Sprintf("192.0.2.%d", 31+i), false); got.Subnet != want {
				t.Errorf("reused %s, want %s", got.Subnet, want)
			}
		}
		// Its subnet is another's by now, so the renewal of the old holder fails.
		if err := f.RenewSilk(t.Context(), first[0]); !errors.Is(err, store.ErrSubnetTaken) {
			t.Errorf("renewal after reuse: %v, want %v", err, store.ErrSubnetTaken)
		}
	},
	"an expired silk lease comes back to its holder": func(t *testing.T, open Open) {
		f := start(t, open)
		l := f.acquire("192.0.2.11", false)
		m := f.acquire("192.0.2.12", true)
		f.clock.Advance(200 * time.Hour)
		same(t, "leases", f.silkLeases(), []store.SilkLease{})
		f.must(f.RenewSilk(t.Context(), l))
		same(t, "acquired again", f.acquire("192.0.2.12", true), m)
		same(t, "leases", f.silkLeases(), []store.SilkLease{l, m})
	},
	"a renewal of an unknown lease enters it, when it can be one": func(t *testing.T, open Open) {
		f := start(t, open)
		cell := f.lease("c1", at("192.0.2.1:4789"))
		lost := silkLease("192.0.2.11", "10.255.77.0/24")
		if cell.Subnet == lost.Subnet {
			lost = silkLease("192.0.2.11", "10.255.78.0/24")
		}
		single := silkLease("192.0.2.12", "10.255.0.255/32")
		f.must(f.RenewSilk(t.Context(), lost))
		f.must(f.RenewSilk(t.Context(), single))
		before := *f.state()
		for _, tt := range []struct {
			name             string
			underlay, subnet string
			want             error
		}{
			{"outside of the network", "192.0.2.13", "10.9.1.0/24", store.ErrNotInPool},
			{"of another size", "192.0.2.13", "10.255.79.0/25", store.ErrNotInPool},
			{"the first block", "192.0.2.13", "10.255.0.0/24", store.ErrNotInPool},
			{"a single address of a block", "192.0.2.13", "10.255.79.1/32", store.ErrNotInPool},
			{"a cell's", "192.0.2.13", cell.Subnet.String(), store.ErrSubnetTaken},
			{"another silk cell's", "192.0.2.13", lost.Subnet.String(), store.ErrSubnetTaken},
			{"another than it holds", "192.0.2.11", "10.255.80.0/24", store.ErrLeaseMismatch},
			{"a cell's underlay", "192.0.2.1", "10.255.80.0/24", store.ErrConflict},
			{"an underlay in the overlay", "10.255.3.4", "10.255.80.0/24", store.ErrConflict},
		} {
			if err := f.RenewSilk(t.Context(), silkLease(tt.underlay, tt.subnet)); !errors.Is(err, tt.want) {
				t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
			}
		}
		same(t, "state", *f.state(), before)
		if _, err := f.AcquireSilk(t.Context(), netip.MustParseAddr("192.0.2.1"), false); !errors.Is(err, store.ErrConflict) {
			t.Errorf("acquired for a cell's underlay: %v, want %v", err, store.ErrConflict)
		}
	},
	"a released silk lease is free at once": func(t *testing.T, open Open) {
		f := start(t, open, tiny)
		var held []store.SilkLease
		for i := range 3 {
			held = append(held, f.acquire(fmt.Sprintf("192.0.2.%d", 11+i), false))
		}
		f.must(f.ReleaseSilk(t.Context(), held[1].Underlay))
		if l := f.lease("c1", at("192.0.2.1:4789")); l.Subnet != held[1].Subnet {
			t.Errorf("a cell got %s, want %s", l.Subnet, held[1].Subnet)
		}
		if err := f.RenewSilk(t.Context(), held[1]); !errors.Is(err, store.ErrSubnetTaken) {
			t.Errorf("renewal of what was released: %v, want %v", err, store.ErrSubnetTaken)
		}
	},
	"an operator's silk peer is the lease of its address": func(t *testing.T, open Open) {
		f := start(t, open)
		f.must(f.AddPeer(t.Context(), silk("s1", "192.0.2.200", "10.255.9.0/24")))
		l := silkLease("192.0.2.200", "10.255.9.0/24")
		same(t, "acquired", f.acquire("192.0.2.200", false), l)
		f.must(f.RenewSilk(t.Context(), l))
		if err := f.RenewSilk(t.Context(), silkLease("192.0.2.200", "10.255.8.0/24")); !errors.Is(err, store.ErrLeaseMismatch) {
			t.Errorf("renewal of another subnet: %v, want %v", err, store.ErrLeaseMismatch)
		}
		f.must(f.ReleaseSilk(t.Context(), l.Underlay))
		f.clock.Advance(1000 * time.Hour)
		same(t, "leases", f.silkLeases(), []store.SilkLease{l})
		elsewhere := silk("s2", "192.0.2.201", "10.255.10.0/24")
		elsewhere.Port = 4790
		f.must(f.AddPeer(t.Context(), elsewhere))
		same(t, "acquired at another port", f.acquire("192.0.2.201", false), silkLease("192.0.2.201", "10.255.10.0/24"))
		if got := f.state().Revision; got != 2 {
			t.Errorf("revision %d, want that of the two peers", got)
		}
	},
	"a silk cell is told of the cells that it can reach": func(t *testing.T, open Open) {
		f := start(t, open)
		reached := f.lease("c1", at("192.0.2.1:4789"))
		f.lease("c2", at("192.0.2.2:40001")) // silk knows one port for all
		f.lease("c3", at("[2001:db8::1]:4789"))
		wg := at("192.0.2.3:4789")
		wg.Mode, wg.Key, wg.WireGuardPort = api.ModeWireGuard, api.TunnelKey{4}, api.DefaultWireGuardPort
		f.lease("c4", wg)
		l := f.acquire("192.0.2.11", false)
		same(t, "leases", f.silkLeases(), []store.SilkLease{{Underlay: netip.MustParseAddr("192.0.2.1"), Subnet: reached.Subnet}, l})
	},
}
