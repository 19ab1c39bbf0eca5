package overlay

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/miekg/dns"

	tulledns "tulle/overlay/dns"
	"tulle/policy"
	"tulle/policy/api"
)

// What the watch says of names, peers and lost cells is what containers are told.
func TestNamesFollowTheWatch(t *testing.T) {
	w, _ := emptyWorld(t)
	r := tulledns.New(tulledns.Options{Upstreams: []netip.AddrPort{}, Names: w.names})
	t.Cleanup(func() { _ = r.Close() })
	resolve := func(name string) (rcode int, addrs []string) {
		t.Helper()
		q, err := new(dns.Msg).SetQuestion(name, dns.TypeA).Pack()
		if err != nil {
			t.Fatal(err)
		}
		answered := make(chan []byte, 1)
		r.Submit(netip.MustParseAddr("10.250.0.9"), q, func(b []byte) { answered <- b })
		m := new(dns.Msg)
		if err := m.Unpack(<-answered); err != nil {
			t.Fatal(err)
		}
		for _, rr := range m.Answer {
			addrs = append(addrs, rr.(*dns.A).A.String())
		}
		slices.Sort(addrs)
		return m.Rcode, addrs
	}
	take := func(e api.Event) {
		t.Helper()
		if err := w.take(e); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(what, name string, want ...string) {
		t.Helper()
		if rcode, got := resolve(name); rcode != dns.RcodeSuccess || !slices.Equal(got, want) {
			t.Errorf("%s: %s is %s %v, want %v", what, name, dns.RcodeToString[rcode], got, want)
		}
	}
	peer := func(name, subnet string) api.Peer {
		return api.Peer{Name: name, Kind: api.KindTulle, Mode: api.ModeVXLAN, Generation: 1, Port: 4789,
			Underlay: netip.MustParsePrefix(subnet).Addr().Next(), Subnet: netip.MustParsePrefix(subnet)}
	}
	instance := func(cell, addr string) api.Instance {
		return api.Instance{App: "back", Cell: cell, Address: netip.MustParseAddr(addr)}
	}
	route := policy.Route{Name: "back.apps.internal", App: "back"}
	take(api.Event{Snapshot: &api.Snapshot{Epoch: "e", Revision: 1,
		Peers:     []api.Peer{peer("b", "10.250.2.0/24"), peer("c", "10.250.3.0/24")},
		Domains:   []policy.Hostname{policy.DefaultDomain},
		Routes:    []policy.Route{route},
		Instances: []api.Instance{instance("b", "10.250.2.1"), instance("c", "10.250.3.1"), instance("self", "10.250.1.77")},
	}})
	expect("at first", "back.apps.internal.", "10.250.2.1", "10.250.3.1")
	take(api.Event{Liveness: &api.Liveness{Lost: []string{"b", "nobody"}}})
	expect("a cell is lost", "back.apps.internal.", "10.250.3.1")
	take(api.Event{Delta: &api.Delta{Revision: 2, InstancesSet: []api.Instance{instance("b", "10.250.2.2")}}})
	expect("lost still, whatever came of it", "back.apps.internal.", "10.250.3.1")
	take(api.Event{Delta: &api.Delta{Revision: 3, PeersRemoved: []string{"b"}, InstancesRemoved: []netip.Addr{netip.MustParseAddr("10.250.2.1")}}})
	take(api.Event{Delta: &api.Delta{Revision: 4, PeersSet: []api.Peer{peer("d", "10.250.2.0/24")}, InstancesSet: []api.Instance{instance("d", "10.250.2.2")}}})
	expect("its lease is another's", "back.apps.internal.", "10.250.2.2", "10.250.3.1")
	take(api.Event{Liveness: &api.Liveness{Lost: []string{"c"}}})
	expect("another is lost", "back.apps.internal.", "10.250.2.2")
	take(api.Event{Heartbeat: &api.Heartbeat{Revision: 4}})
	expect("a heartbeat says nothing of it", "back.apps.internal.", "10.250.2.2")
	take(api.Event{Liveness: &api.Liveness{}})
	expect("all are back", "back.apps.internal.", "10.250.2.2", "10.250.3.1")
	take(api.Event{Delta: &api.Delta{Revision: 5, RoutesRemoved: []policy.Route{route}}})
	if rcode, _ := resolve("back.apps.internal."); rcode != dns.RcodeNameError {
		t.Errorf("unmapped: %s", dns.RcodeToString[rcode])
	}
}
