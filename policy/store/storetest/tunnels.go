package storetest

import (
	"errors"
	"net/netip"
	"testing"

	"tulle/policy/api"
	"tulle/policy/store"
)

// inTunnel is a request of mode wireguard.
func inTunnel(underlay string, port uint16, key byte) api.LeaseRequest {
	r := at(underlay)
	r.Mode, r.Key, r.WireGuardPort = api.ModeWireGuard, api.TunnelKey{key}, port
	return r
}

// tunnelTests: a peer's key, its tunnel address and its lease are one thing.
var tunnelTests = map[string]func(*testing.T, Open){
	"key, port and tunnel address are published with the lease": func(t *testing.T, open Open) {
		f := start(t, open, small)
		l := f.lease("c1", inTunnel("192.0.2.1:4789", 51820, 1))
		want := api.Peer{Name: "c1", Kind: api.KindTulle, Mode: api.ModeWireGuard, Underlay: netip.MustParseAddr("192.0.2.1"), Port: 4789,
			Subnet: l.Subnet, Generation: 1, Key: api.TunnelKey{1}, WireGuardPort: 51820, Tunnel: api.LeasedTunnel(l.Network, l.Subnet)}
		same(t, "peers", f.state().Peers, []api.Peer{want})
		same(t, "change", f.since(0), []api.Delta{{Revision: 1, PeersSet: []api.Peer{want}}})
		cells, err := f.Cells(t.Context())
		f.must(err)
		if len(cells) != 1 || cells[0].Peer != want {
			t.Errorf("cells: %+v", cells)
		}
		// A new key is news to every peer, under the same lease.
		r := inTunnel("192.0.2.1:4789", 51820, 2)
		r.Subnet, r.Generation = l.Subnet, l.Generation
		f.lease("c1", r)
		want.Key = api.TunnelKey{2}
		same(t, "new key", f.since(1), []api.Delta{{Revision: 2, PeersSet: []api.Peer{want}}})
		// And without the mode it has none.
		r.Mode = api.ModeVXLAN
		f.lease("c1", r)
		want.Mode, want.Key, want.WireGuardPort, want.Tunnel = api.ModeVXLAN, api.TunnelKey{}, 0, netip.Addr{}
		same(t, "plain", f.state().Peers, []api.Peer{want})
	},
	"a second key, while the cell rotates": func(t *testing.T, open Open) {
		f := start(t, open, small)
		r := inTunnel("192.0.2.1:4789", 51820, 1)
		l := f.lease("c1", r)
		r.Subnet, r.Generation = l.Subnet, l.Generation
		want := f.state().Peers[0]
		for _, step := range []struct {
			name      string
			key, next byte
			revision  api.Revision
		}{
			{"both", 1, 2, 2}, {"both again", 1, 2, 2}, {"the new one alone", 2, 0, 3},
			{"the next", 2, 3, 4}, {"given up", 2, 0, 5}, {"to and fro", 2, 1, 6},
		} {
			r.Key, r.NextKey = api.TunnelKey{step.key}, api.TunnelKey{step.next}
			got := f.lease("c1", r)
			if got.Revision != step.revision || got.Epoch != f.Epoch() || got.Generation != l.Generation {
				t.Errorf("%s: %+v, want revision %d", step.name, got, step.revision)
			}
			want.Key, want.NextKey = r.Key, r.NextKey
			same(t, step.name, f.state().Peers, []api.Peer{want})
		}
		for _, step := range []struct {
			name      string
			key, next byte
			mode      api.TunnelMode
		}{
			{"twice the same", 7, 7, api.ModeWireGuard}, {"without the mode", 7, 8, api.ModeVXLAN},
			{"another's key as next", 7, 2, api.ModeWireGuard}, {"another's next as next", 7, 1, api.ModeWireGuard},
			{"another's next as key", 1, 7, api.ModeWireGuard}, {"another's key", 2, 7, api.ModeWireGuard},
		} {
			r := inTunnel("192.0.2.2:4789", 51820, step.key)
			r.NextKey, r.Mode = api.TunnelKey{step.next}, step.mode
			if _, err := f.Lease(t.Context(), "c2", r); !errors.Is(err, store.ErrConflict) {
				t.Errorf("%s: %v, want %v", step.name, err, store.ErrConflict)
			}
		}
		p := silk("s1", "192.0.2.200", "10.9.0.7/32")
		p.Mode, p.Key, p.NextKey, p.Tunnel = api.ModeWireGuard, api.TunnelKey{9}, api.TunnelKey{10}, netip.MustParseAddr("100.100.0.7")
		if err := f.AddPeer(t.Context(), p); !errors.Is(err, store.ErrConflict) {
			t.Errorf("a foreign peer with two keys: %v, want %v", err, store.ErrConflict)
		}
		// A lease that ends takes both keys with it.
		f.must(f.ReleaseLease(t.Context(), "c1"))
		free := inTunnel("192.0.2.2:4789", 51820, 1)
		free.NextKey = api.TunnelKey{2}
		f.lease("c2", free)
	},
	"a key, a port or a tunnel address is one peer's": func(t *testing.T, open Open) {
		f := start(t, open, small)
		first := f.lease("c1", inTunnel("192.0.2.1:4789", 51820, 1))
		for name, r := range map[string]api.LeaseRequest{
			"another's key":            inTunnel("192.0.2.2:4789", 51820, 1),
			"another's WireGuard port": inTunnel("192.0.2.1:4790", 51820, 2),
			"another's VXLAN port":     inTunnel("192.0.2.1:4790", 4789, 2),
			"no key":                   inTunnel("192.0.2.2:4789", 51820, 0),
			"no port":                  inTunnel("192.0.2.2:4789", 0, 2),
			"its own VXLAN port":       inTunnel("192.0.2.2:4789", 4789, 2),
		} {
			if _, err := f.Lease(t.Context(), "c2", r); !errors.Is(err, store.ErrConflict) {
				t.Errorf("%s: %v, want %v", name, err, store.ErrConflict)
			}
		}
		f.must(f.ReleaseLease(t.Context(), "c1"))
		if l := f.lease("c2", inTunnel("192.0.2.1:4789", 51820, 1)); l.Subnet == first.Subnet {
			t.Errorf("c2 got c1's subnet %s while another is free", l.Subnet)
		}
	},
	"a foreign peer of mode wireguard": func(t *testing.T, open Open) {
		f := start(t, open, small)
		f.lease("c1", inTunnel("192.0.2.1:4789", 51820, 1))
		tunnelled := func(change func(*api.Peer)) api.Peer {
			p := silk("s1", "192.0.2.200", "10.9.0.7/32")
			p.Mode, p.Key, p.Tunnel = api.ModeWireGuard, api.TunnelKey{9}, netip.MustParseAddr("100.100.0.7")
			change(&p)
			return p
		}
		for name, p := range map[string]api.Peer{
			"no key":                    tunnelled(func(p *api.Peer) { p.Key = api.TunnelKey{} }),
			"a cell's key":              tunnelled(func(p *api.Peer) { p.Key = api.TunnelKey{1} }),
			"no tunnel address":         tunnelled(func(p *api.Peer) { p.Tunnel = netip.Addr{} }),
			"tunnel address elsewhere":  tunnelled(func(p *api.Peer) { p.Tunnel = netip.MustParseAddr("192.0.2.7") }),
			"tunnel address of a lease": tunnelled(func(p *api.Peer) { p.Tunnel = netip.MustParseAddr("100.64.0.3") }),
			"a key without the mode":    tunnelled(func(p *api.Peer) { p.Mode = api.ModeVXLAN }),
			"unknown mode":              tunnelled(func(p *api.Peer) { p.Mode = "gre" }),
		} {
			if err := f.AddPeer(t.Context(), p); !errors.Is(err, store.ErrConflict) {
				t.Errorf("%s: %v, want %v", name, err, store.ErrConflict)
			}
		}
		p := tunnelled(func(*api.Peer) {})
		f.must(f.AddPeer(t.Context(), p))
		f.must(f.AddPeer(t.Context(), p)) // again
		p.Kind, p.Port, p.WireGuardPort, p.Generation = api.KindSilk, 4789, api.DefaultWireGuardPort, 1
		same(t, "peers", f.state().Peers[1:], []api.Peer{p})
		if _, err := f.Lease(t.Context(), "c2", inTunnel("192.0.2.2:4789", 51820, 9)); !errors.Is(err, store.ErrConflict) {
			t.Errorf("a cell with the peer's key: %v, want %v", err, store.ErrConflict)
		}
		// One with a subnet of the pool has that subnet's address.
		q := tunnelled(func(p *api.Peer) {
			p.Name, p.Underlay, p.Key, p.Tunnel = "s2", netip.MustParseAddr("192.0.2.201"), api.TunnelKey{8}, netip.Addr{}
			p.Subnet = netip.MustParsePrefix("10.9.3.0/24")
		})
		if f.state().Peers[0].Subnet == q.Subnet {
			q.Subnet = netip.MustParsePrefix("10.9.2.0/24")
		}
		f.must(f.AddPeer(t.Context(), q))
		if got, want := f.state().Peers[2].Tunnel, api.LeasedTunnel(netip.MustParsePrefix("10.9.0.0/22"), q.Subnet); got != want {
			t.Errorf("tunnel address %s, want %s", got, want)
		}
	},
}
