package hub

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tulle/policy"
	"tulle/policy/api"
)

// Addresses follow routes, instances and liveness, oldest route first.
func TestAddressesOfNames(t *testing.T) {
	m := newMemory()
	address := func(n byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 255, 0, n}) }
	m.commit(func(w *world, d *api.Delta) {
		for i, e := range []api.Endpoint{
			{Cell: "b", Container: "1", App: "web", Instance: "1"},
			{Cell: "a", Container: "2", App: "web", Instance: "0"},
			{Cell: "a", Container: "3", App: "green", Instance: "0"},
			{Cell: "a", Container: "4", App: "other", Instance: "0"},
		} {
			e.Address, e.Incarnation = address(byte(i+1)), uint64(i+1)
			w.endpoints[placeOf(e)] = e
		}
		for _, name := range []string{"a", "b"} {
			w.peers[name] = api.Peer{Name: name, Kind: api.KindTulle}
		}
	})
	b := run(t, m, Options{SilentAfter: 30 * time.Second})
	watch := b.watch("a", "", 0)
	route := func(rs ...policy.Route) {
		rev := m.commit(func(_ *world, d *api.Delta) { d.RoutesSet = rs })
		b.until(watch, func(e api.Event) bool { return e.Delta != nil && e.Delta.Revision >= rev })
	}
	b.until(watch, func(e api.Event) bool { return e.Snapshot != nil })
	route(policy.Route{Name: "web.apps.internal", App: "web"})
	route(policy.Route{Name: "web.apps.internal", Address: address(9)}, policy.Route{Name: "web.apps.internal", App: "green"})
	expect := func(what string, name policy.Hostname, want ...byte) {
		t.Helper()
		var addrs []netip.Addr
		for _, n := range want {
			addrs = append(addrs, address(n))
		}
		if diff := cmp.Diff(addrs, b.h.Addresses(name), byValue); diff != "" {
			t.Errorf("%s: %s (-want +got):\n%s", what, name, diff)
		}
	}
	expect("of two apps and an address", "web.apps.internal", 2, 1, 9, 3)
	expect("of an instance", "0.web.apps.internal", 2, 3)
	expect("of nobody", "7.web.apps.internal")
	expect("of nobody", "no.apps.internal")
	b.clock.advance(time.Minute)
	b.h.Seen("a")
	b.h.judge()
	expect("a cell is lost", "web.apps.internal", 2, 9, 3)
	b.h.Seen("b")
	expect("it is back", "web.apps.internal", 2, 1, 9, 3)
	if names := b.h.Names(); !slices.Equal(names, []policy.Hostname{"web.apps.internal"}) {
		t.Errorf("names %v", fmt.Sprint(names))
	}
	rev := m.commit(func(_ *world, d *api.Delta) {
		d.RoutesRemoved = []policy.Route{{Name: "web.apps.internal", App: "web"}}
	})
	b.until(watch, func(e api.Event) bool { return e.Delta != nil && e.Delta.Revision >= rev })
	expect("unmapped", "web.apps.internal", 9, 3)
	route(policy.Route{Name: "web.apps.internal", Address: address(3)}, policy.Route{Name: "web.apps.internal", App: "web"})
	expect("registered beside its app's route", "web.apps.internal", 9, 3, 2, 1)
}
