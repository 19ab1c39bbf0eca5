package storetest

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"tulle/policy/api"
	"tulle/policy/lease"
	"tulle/policy/store"
)

func small(c *Config) { // three subnets that can be given
	c.Lease = store.LeaseConfig{Network: netip.MustParsePrefix("10.9.0.0/22"), Bits: 24, Lifetime: time.Hour}
}

var leaseTests = map[string]func(*testing.T, Open){
	"a cell gets a subnet of the pool, and the same one on renewal": func(t *testing.T, open Open) {
		f := start(t, open)
		l := f.lease("c1", at("192.0.2.1:4789"))
		pool, err := lease.NewPool(l.Network, 24)
		f.must(err)
		if !pool.Contains(l.Subnet) || l.Generation != 1 || l.Seconds != 7*24*3600 || l.Cell != "c1" {
			t.Errorf("lease %+v", l)
		}
		peer := api.Peer{Name: "c1", Kind: api.KindTulle, Mode: api.ModeVXLAN, Underlay: netip.MustParseAddr("192.0.2.1"),
			Port: 4789, Subnet: l.Subnet, Generation: 1}
		same(t, "change", f.since(0), []api.Delta{{Revision: 1, PeersSet: []api.Peer{peer}}})
		f.clock.Advance(100 * time.Hour)
		same(t, "renewal", f.lease("c1", again("192.0.2.1:4789", l)), l)
		f.clock.Advance(100 * time.Hour) // past the first lifetime
		_, err = f.Expire(t.Context())
		f.must(err)
		s := f.state()
		same(t, "peers", s.Peers, []api.Peer{peer})
		if s.Revision != 1 {
			t.Errorf("a renewal made revision %d", s.Revision)
		}
		cells, err := f.Cells(t.Context())
		f.must(err)
		if len(cells) != 1 || !cells[0].Renewed.Equal(f.clock.Now().Add(-100*time.Hour)) || !cells[0].Expires.After(f.clock.Now()) {
			t.Errorf("cells %+v at %s", cells, f.clock.Now())
		}
	},
	"a cell that moves keeps its lease under its new address": func(t *testing.T, open Open) {
		f := start(t, open)
		l := f.lease("c1", at("192.0.2.1:4789"))
		moved := f.lease("c1", again("192.0.2.7:4790", l))
		if l.Revision != 1 || moved.Revision != 2 {
			t.Errorf("known at revisions %d and %d, want 1 and 2", l.Revision, moved.Revision)
		}
		l.Revision = moved.Revision
		same(t, "lease", moved, l)
		if d := f.since(1); len(d) != 1 || d[0].PeersSet[0].Port != 4790 || d[0].PeersSet[0].Generation != 1 {
			t.Errorf("change %+v", d)
		}
	},
	"a generation that is not the stored one rises and ends the old endpoints": func(t *testing.T, open Open) {
		f := start(t, open)
		l := f.lease("c1", at("192.0.2.1:4789"))
		f.endpoints("c1", api.EndpointsRequest{Generation: 1, Sequence: 5, Endpoints: []api.EndpointRegistration{{
			Container: "k", Address: l.Subnet.Addr().Next(), App: api.AppRef{GUID: "web"}, Incarnation: 3}}})
		f.reopen()
		before := f.state().Revision
		next := f.lease("c1", at("192.0.2.1:4789"))
		if next.Subnet != l.Subnet || next.Generation != 2 {
			t.Errorf("without its journal the cell got %+v after %+v", next, l)
		}
		d := f.since(before)
		if len(d) != 1 || len(d[0].PeersSet) != 1 || d[0].PeersSet[0].Generation != 2 {
			t.Fatalf("changes %+v", d)
		}
		same(t, "removed in the same change", d[0].EndpointsRemoved, []api.EndpointKey{
			{Cell: "c1", Container: "k", Address: l.Subnet.Addr().Next(), Generation: 1, Incarnation: 3}})
		same(t, "endpoints", f.state().Endpoints, []api.Endpoint{})
		// The new journal counts from the beginning.
		f.endpoints("c1", api.EndpointsRequest{Generation: 2, Sequence: 1, Endpoints: []api.EndpointRegistration{{
			Container: "n", Address: l.Subnet.Addr().Next(), App: api.AppRef{GUID: "web"}, Incarnation: 1}}})
		if len(f.state().Endpoints) != 1 {
			t.Errorf("endpoints %+v", f.state().Endpoints)
		}
		if got := f.lease("c1", again("192.0.2.1:4789", l)); got.Generation != 3 {
			t.Errorf("an older generation was answered with %d, want 3", got.Generation)
		}
	},
	"a store that forgot the cell gives what the cell holds, under a higher generation": func(t *testing.T, open Open) {
		f := start(t, open)
		r := at("192.0.2.1:4789")
		r.Subnet, r.Generation = netip.MustParsePrefix("10.255.77.0/24"), 41
		if l := f.lease("c1", r); l.Subnet != r.Subnet || l.Generation != 42 {
			t.Errorf("lease %+v", l)
		}
		r = at("192.0.2.2:4789")
		r.Subnet, r.Generation = netip.MustParsePrefix("10.255.77.0/24"), 4
		if l := f.lease("c2", r); l.Subnet == r.Subnet || l.Generation != 5 {
			t.Errorf("of a subnet that is another's: %+v", l)
		}
		for i, outside := range []string{"10.255.0.0/24", "10.9.1.0/24", "10.255.7.0/25"} {
			r := at(fmt.Sprintf("192.0.2.3:%d", 5000+i))
			r.Subnet = netip.MustParsePrefix(outside)
			if l := f.lease(fmt.Sprint("c3-", i), r); l.Subnet == r.Subnet {
				t.Errorf("subnet %s is none of the pool's, but was given", r.Subnet)
			}
		}
	},
	"the pool runs out, and only an expired lease is reused": func(t *testing.T, open Open) {
		f := start(t, open, small)
		leases := map[string]api.Lease{}
		taken := map[netip.Prefix]bool{}
		for i := range 3 {
			name := fmt.Sprint("c", i)
			leases[name] = f.lease(name, at(fmt.Sprintf("192.0.2.%d:1", i+1)))
			taken[leases[name].Subnet] = true
		}
		if len(taken) != 3 || taken[netip.MustParsePrefix("10.9.0.0/24")] {
			t.Fatalf("subnets %v, want three and never the first", taken)
		}
		_, err := f.Lease(t.Context(), "late", at("192.0.2.9:1"))
		if !errors.Is(err, store.ErrNoLease) {
			t.Fatalf("a fourth cell: %v, want %v", err, store.ErrNoLease)
		}
		f.clock.Advance(59 * time.Minute)
		for _, name := range []string{"c0", "c1"} {
			f.lease(name, again(fmt.Sprintf("192.0.2.%d:1", name[1]-'0'+1), leases[name]))
		}
		f.clock.Advance(time.Minute) // c2's time is over, but for the grace
		if _, err := f.Lease(t.Context(), "late", at("192.0.2.9:1")); !errors.Is(err, store.ErrNoLease) {
			t.Fatalf("within the grace: %v, want %v", err, store.ErrNoLease)
		}
		f.clock.Advance(lease.Grace(time.Hour))
		before := f.state().Revision
		late := f.lease("late", at("192.0.2.9:1"))
		if late.Subnet != leases["c2"].Subnet {
			t.Errorf("got %s, want that of c2, %s", late.Subnet, leases["c2"].Subnet)
		}
		d := f.since(before)
		if len(d) != 1 || len(d[0].PeersRemoved) != 1 || d[0].PeersRemoved[0] != "c2" || d[0].PeersSet[0].Name != "late" {
			t.Errorf("change %+v", d)
		}
		if _, err := f.Lease(t.Context(), "c2", again("192.0.2.3:1", leases["c2"])); !errors.Is(err, store.ErrNoLease) {
			t.Errorf("c2 came back to a full pool: %v, want %v", err, store.ErrNoLease)
		}
	},
	"an expired lease ends by itself, with its endpoints": func(t *testing.T, open Open) {
		f := start(t, open, small)
		if next, err := f.Expire(t.Context()); err != nil || !next.IsZero() {
			t.Errorf("without leases: %s, %v", next, err)
		}
		l := f.lease("c1", at("192.0.2.1:1"))
		f.endpoints("c1", api.EndpointsRequest{Generation: 1, Sequence: 1, Endpoints: []api.EndpointRegistration{{
			Container: "k", Address: l.Subnet.Addr().Next(), App: api.AppRef{GUID: "web"}}}})
		next, err := f.Expire(t.Context())
		f.must(err)
		if want := f.clock.Now().Add(time.Hour + lease.Grace(time.Hour)); !next.Equal(want) {
			t.Errorf("next at %s, want %s", next, want)
		}
		f.clock.Advance(next.Sub(f.clock.Now()))
		before := f.state().Revision
		_, err = f.Expire(t.Context())
		f.must(err)
		d := f.since(before)
		if len(d) != 1 || len(d[0].PeersRemoved) != 1 || len(d[0].EndpointsRemoved) != 1 {
			t.Fatalf("change %+v", d)
		}
		_, err = f.SetEndpoints(t.Context(), "c1", api.EndpointsRequest{Generation: 1, Sequence: 2})
		if !errors.Is(err, store.ErrNotFound) {
			t.Errorf("endpoints without a lease: %v, want %v", err, store.ErrNotFound)
		}
		// Other cells came meanwhile; the subnet was the last to be given away.
		f.lease("c2", at("192.0.2.2:1"))
		f.lease("c3", at("192.0.2.3:1"))
		if back := f.lease("c1", again("192.0.2.1:1", l)); back.Subnet != l.Subnet || back.Generation != 2 {
			t.Errorf("back after expiry: %+v, had %+v; want the subnet under a new generation", back, l)
		}
	},
	"a released lease is free at once, its generation never falls": func(t *testing.T, open Open) {
		f := start(t, open)
		f.must(f.ReleaseLease(t.Context(), "nobody"))
		l := f.lease("c1", at("192.0.2.1:1"))
		before := f.state().Revision
		f.must(f.ReleaseLease(t.Context(), "c1"))
		same(t, "change", f.since(before), []api.Delta{{Revision: before + 1, PeersRemoved: []string{"c1"}}})
		f.must(f.ReleaseLease(t.Context(), "c1"))
		f.lease("c2", at("192.0.2.1:1")) // its underlay is free as well
		if back := f.lease("c1", again("192.0.2.2:1", l)); back.Generation != 2 {
			t.Errorf("generation %d after a release, want 2", back.Generation)
		}
	},
	"two cells never share an underlay address and port": func(t *testing.T, open Open) {
		f := start(t, open)
		f.lease("c1", at("192.0.2.1:4789"))
		f.lease("c2", at("192.0.2.1:4790"))
		before := f.state().Revision
		_, err := f.Lease(t.Context(), "c3", at("192.0.2.1:4789"))
		if !errors.Is(err, store.ErrConflict) {
			t.Errorf("a second cell at one address: %v, want %v", err, store.ErrConflict)
		}
		if r := f.state().Revision; r != before {
			t.Errorf("a refusal made revision %d of %d", r, before)
		}
	},
	"requests that make no sense are refused": func(t *testing.T, open Open) {
		f := start(t, open)
		for name, change := range map[string]func(*api.LeaseRequest){
			"no address":         func(r *api.LeaseRequest) { r.Underlay = netip.Addr{} },
			"any address":        func(r *api.LeaseRequest) { r.Underlay = netip.MustParseAddr("0.0.0.0") },
			"multicast":          func(r *api.LeaseRequest) { r.Underlay = netip.MustParseAddr("224.0.0.1") },
			"in the overlay":     func(r *api.LeaseRequest) { r.Underlay = netip.MustParseAddr("10.255.3.4") },
			"no port":            func(r *api.LeaseRequest) { r.Port = 0 },
			"unknown mode":       func(r *api.LeaseRequest) { r.Mode = "gre" },
			"generation 2 ** 40": func(r *api.LeaseRequest) { r.Generation = 1 << 40 },
		} {
			r := at("192.0.2.1:4789")
			change(&r)
			if _, err := f.Lease(t.Context(), "c1", r); !errors.Is(err, store.ErrConflict) {
				t.Errorf("%s: %v, want %v", name, err, store.ErrConflict)
			}
		}
		if _, err := f.Lease(t.Context(), "", at("192.0.2.1:4789")); !errors.Is(err, store.ErrConflict) {
			t.Errorf("no name: %v, want %v", err, store.ErrConflict)
		}
		same(t, "cells", f.state().Peers, []api.Peer{})
	},
}

func silk(name, underlay, subnet string) api.Peer {
	return api.Peer{Name: name, Underlay: netip.MustParseAddr(underlay), Subnet: netip.MustParsePrefix(subnet)}
}

var peerTests = map[string]func(*testing.T, Open){
	"a silk peer takes its subnet out of the pool and never expires": func(t *testing.T, open Open) {
		f := start(t, open, small)
		f.must(f.AddPeer(t.Context(), silk("s1", "192.0.2.200", "10.9.2.0/24")))
		want := silk("s1", "192.0.2.200", "10.9.2.0/24")
		want.Kind, want.Mode, want.Port, want.Generation = api.KindSilk, api.ModeVXLAN, 4789, 1
		same(t, "peers", f.state().Peers, []api.Peer{want})
		f.must(f.AddPeer(t.Context(), silk("s1", "192.0.2.200", "10.9.2.0/24"))) // again
		if r := f.state().Revision; r != 1 {
			t.Errorf("the same peer again made revision %d", r)
		}
		f.clock.Advance(1000 * time.Hour)
		for i := range 2 {
			if l := f.lease(fmt.Sprint("c", i), at(fmt.Sprintf("192.0.2.%d:1", i+1))); l.Subnet == want.Subnet {
				t.Errorf("c%d got the silk peer's subnet", i)
			}
		}
		if _, err := f.Lease(t.Context(), "c9", at("192.0.2.9:1")); !errors.Is(err, store.ErrNoLease) {
			t.Errorf("pool of three with two cells and a peer: %v, want %v", err, store.ErrNoLease)
		}
		s, err := f.Stats(t.Context())
		f.must(err)
		if s.Leases != 3 || s.LeasePool != 3 {
			t.Errorf("%d of %d leases held, want 3 of 3", s.Leases, s.LeasePool)
		}
		f.must(f.RemovePeer(t.Context(), "s1"))
		if l := f.lease("c9", at("192.0.2.9:1")); l.Subnet != want.Subnet {
			t.Errorf("after the peer's removal: %+v", l)
		}
	},
	"a peer that clashes is refused": func(t *testing.T, open Open) {
		f := start(t, open, small)
		l := f.lease("c1", at("192.0.2.1:4789"))
		f.must(f.AddPeer(t.Context(), silk("s1", "192.0.2.200", "10.9.0.7/32"))) // a single-IP lease
		for name, p := range map[string]api.Peer{
			"subnet of a cell":   silk("s2", "192.0.2.201", l.Subnet.String()),
			"subnet of a peer":   silk("s2", "192.0.2.201", "10.9.0.0/24"),
			"underlay of a cell": silk("s2", "192.0.2.1", "10.9.0.8/32"),
			"name of a cell":     silk("c1", "192.0.2.201", "10.9.0.8/32"),
			"other data":         silk("s1", "192.0.2.201", "10.9.0.8/32"),
			"outside":            silk("s2", "192.0.2.201", "10.8.0.0/24"),
			"whole network":      silk("s2", "192.0.2.201", "10.9.0.0/22"),
			"host bits":          silk("s2", "192.0.2.201", "10.9.0.9/24"),
			"underlay inside":    silk("s2", "10.9.1.1", "10.9.0.8/32"),
			"no name":            silk("", "192.0.2.201", "10.9.0.8/32"),
			"a cell":             {Name: "s2", Kind: api.KindTulle, Underlay: netip.MustParseAddr("192.0.2.201"), Subnet: netip.MustParsePrefix("10.9.0.8/32")},
		} {
			if err := f.AddPeer(t.Context(), p); !errors.Is(err, store.ErrConflict) {
				t.Errorf("%s: %v, want %v", name, err, store.ErrConflict)
			}
		}
		if _, err := f.Lease(t.Context(), "s1", at("192.0.2.50:1")); !errors.Is(err, store.ErrConflict) {
			t.Errorf("a lease by a silk peer's name: %v, want %v", err, store.ErrConflict)
		}
		if err := f.RemovePeer(t.Context(), "c1"); !errors.Is(err, store.ErrConflict) {
			t.Errorf("removing a cell as a peer: %v, want %v", err, store.ErrConflict)
		}
		if err := f.RemovePeer(t.Context(), "s9"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("removing nobody: %v, want %v", err, store.ErrNotFound)
		}
	},
}
