package overlay

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"tulle/overlay/netcfg"
	"tulle/overlay/netcfg/nstest"
	"tulle/policy/api"
)

// The overlay network must not hold what this host needs: the daemon names the
// clash and does not start; without it, it does.
func TestRefusesAClash(t *testing.T) {
	p := newPlane(t)
	one := p.cell("one", "127.0.0.1", nil)
	one.shut()
	was := one.cfg.Resolvers
	one.cfg.Resolvers = []netip.AddrPort{netip.AddrPortFrom(network.Addr().Next(), 53)}
	clashes(t, one.tryRun(), "10.250.0.0/16 holds a resolver, 10.250.0.1")
	one.cfg.Resolvers, one.cfg.ResolvConf = nil, filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(one.cfg.ResolvConf, []byte("nameserver 10.250.0.9\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	clashes(t, one.tryRun(), "10.250.0.0/16 holds a resolver, 10.250.0.9")
	one.cfg.Resolvers = was
	one.run()
}

// Whoever does as a clash says, and changes the overlay network, has no cell that
// insists on the lease it was given before.
func TestAnotherNetworkEndsAClash(t *testing.T) {
	p := newPlane(t)
	one := p.cell("one", "127.0.0.1", nil)
	one.shut()
	one.cfg.Resolvers = []netip.AddrPort{netip.AddrPortFrom(network.Addr().Next(), 53)}
	clashes(t, one.tryRun(), "10.250.0.0/16 holds a resolver, 10.250.0.1")
	p.stop()
	p.network = mustPrefix("10.251.0.0/16")
	p.start()
	one.run()
	if s := one.status(); !p.network.Contains(s.Lease.Addr()) {
		t.Errorf("the lease is %v", s.Lease)
	}
}

// The server refuses peers inside the overlay network itself; a cell does not
// rely on it. In the first table such a peer ends the start, later it is left
// out and the rest stands.
func TestPeerClashes(t *testing.T) {
	bad := api.Peer{Name: "silk-8", Kind: api.KindSilk, Mode: api.ModeVXLAN, Underlay: netip.MustParseAddr("10.250.3.4"), Subnet: mustPrefix("10.250.76.0/24")}
	good := api.Peer{Name: "silk-9", Kind: api.KindSilk, Mode: api.ModeVXLAN, Underlay: netip.MustParseAddr("192.0.2.9"), Subnet: mustPrefix("10.250.77.0/24")}
	const want = "10.250.0.0/16 holds the underlay address of peer silk-8, 10.250.3.4"

	var ended error
	l := &life{d: &Daemon{log: testLog(t, "one")}, fail: func(err error) { ended = err }}
	l.lease.Network = network
	err := l.take(t.Context(), api.Event{Snapshot: &api.Snapshot{Epoch: "e", Revision: 1, Peers: []api.Peer{good, bad}}})
	clashes(t, err, want)
	clashes(t, ended, want)

	l.started = true
	for name, peers := range map[string]func(*api.Event) *[]api.Peer{
		"snapshot": func(e *api.Event) *[]api.Peer { e.Snapshot = &api.Snapshot{}; return &e.Snapshot.Peers },
		"delta":    func(e *api.Event) *[]api.Peer { e.Delta = &api.Delta{}; return &e.Delta.PeersSet },
	} {
		var e api.Event
		list := peers(&e)
		*list = []api.Peer{bad, good}
		if err := l.checkPeers(&e); err != nil || len(*list) != 1 || (*list)[0].Name != "silk-9" {
			t.Errorf("%s: %v, %+v; want silk-9 alone", name, err, *list)
		}
	}
}

// What the host itself is and reaches, in a namespace that plays the host.
func TestHostClashes(t *testing.T) {
	nstest.NeedNamespaces(t)
	host, far := nstest.New(t), nstest.New(t)
	name, _ := nstest.Veth(t, host, far, mustPrefix("10.250.5.1/30"), mustPrefix("10.250.5.2/30"))
	routed := nstest.New(t)
	via, _ := nstest.Veth(t, routed, far, mustPrefix("192.0.2.1/24"), mustPrefix("192.0.2.2/24"))
	if err := routed.Do(func() error {
		link, err := netlink.LinkByName(via)
		if err != nil {
			return err
		}
		_, dst, err := net.ParseCIDR("10.250.8.0/24")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst})
	}); err != nil {
		t.Fatal(err)
	}
	clear := nstest.New(t)
	for _, c := range []struct {
		name     string
		host     *nstest.Namespace
		server   string
		underlay string
		want     []string
	}{
		{"nothing", clear, "https://127.0.0.1:4003", "192.0.2.1", nil},
		{"the underlay", clear, "https://127.0.0.1:4003", "10.250.9.9", []string{"holds the underlay address, 10.250.9.9"}},
		{"the policy server", clear, "https://10.250.1.1:4003", "192.0.2.1", []string{"holds the policy server, 10.250.1.1"}},
		{"an address of the host", host, "https://127.0.0.1:4003", "192.0.2.1",
			[]string{"holds this host's address on " + name + ", 10.250.5.1", "holds this host's route on " + name + ", 10.250.5.0/30"}},
		{"a route of the host", routed, "https://127.0.0.1:4003", "192.0.2.1", []string{"holds this host's route on " + via + ", 10.250.8.0/24"}},
		{"all that is wrong", routed, "https://10.250.1.1:4003", "10.250.9.9", []string{"the underlay address", "the policy server", "this host's route"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := &life{d: &Daemon{cfg: Config{Server: c.server, Underlay: netip.MustParseAddr(c.underlay),
				Resolvers: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")}}}}
			l.lease.Network = network
			err := c.host.Do(l.clashes)
			if len(c.want) == 0 && err != nil {
				t.Errorf("got %v", err)
			}
			for _, want := range c.want {
				clashes(t, err, want)
			}
		})
	}
}

func clashes(t *testing.T, err error, want string) {
	t.Helper()
	if !errors.Is(err, netcfg.ErrClash) || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want a clash that says %q", err, want)
	}
}
