package overlay

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"tulle/overlay/dns"
	"tulle/overlay/fib"
	"tulle/overlay/wireguard"
	"tulle/policy/api"
	"tulle/policy/table"
)

// calls notes what world does with sessions.
type calls struct {
	did  []string
	fail error
}

func (c *calls) Set(name string, p wireguard.Peer) error {
	also := ""
	if p.Also != (wireguard.PublicKey{}) {
		also = fmt.Sprintf(" and %d", p.Also[0])
	}
	c.did = append(c.did, fmt.Sprintf("set %s %d%s %s %s", name, p.Key[0], also, p.Address, p.Endpoint))
	return c.fail
}
func (c *calls) Begin(name string)  { c.did = append(c.did, "begin "+name) }
func (c *calls) Renew(name string)  { c.did = append(c.did, "renew "+name) }
func (c *calls) Remove(name string) { c.did = append(c.did, "remove "+name) }

func (c *calls) expect(t *testing.T, want ...string) {
	t.Helper()
	if !slices.Equal(c.did, want) {
		t.Errorf("did\n  %s\nwant\n  %s", strings.Join(c.did, "\n  "), strings.Join(want, "\n  "))
	}
	c.did = nil
}

func tunnelWorld(t *testing.T) (*world, *calls, *bytes.Buffer) {
	t.Helper()
	f, err := fib.New(network, netip.MustParsePrefix("10.250.1.0/24"))
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	c := &calls{}
	tunnels := newTunnels(slog.New(slog.NewTextHandler(&log, nil)))
	tunnels.sessions = c
	return newWorld("self", f, table.New(), table.New(), &recorder{}, tunnels, dns.NewNames(netip.Prefix{})), c, &log
}

func tunnelPeer(n, key byte) api.Peer {
	return api.Peer{Name: fmt.Sprint("cell-", n), Kind: api.KindTulle, Mode: api.ModeWireGuard, Generation: 1, Port: 4789, WireGuardPort: 51820,
		Underlay: netip.AddrFrom4([4]byte{192, 0, 2, n}), Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 250, n, 0}), 24),
		Key: api.TunnelKey{key}, Tunnel: netip.AddrFrom4([4]byte{100, 64, 0, n})}
}

func (w *world) tell(t *testing.T, d api.Delta) {
	t.Helper()
	d.Revision = w.revision + 1
	if err := w.take(api.Event{Delta: &d}); err != nil {
		t.Fatal(err)
	}
}

func TestSessionsFollowPeers(t *testing.T) {
	w, c, log := tunnelWorld(t)
	w.tell(t, api.Delta{PeersSet: []api.Peer{tunnelPeer(2, 2), tunnelPeer(3, 3)}})
	c.expect(t, "set cell-2 2 100.64.0.2 192.0.2.2:51820", "set cell-3 3 100.64.0.3 192.0.2.3:51820")
	if p := w.fib.Load().PeerByTunnel(netip.MustParseAddr("100.64.0.2")); p == nil || p.Name != "cell-2" || p.Mode != fib.WireGuard {
		t.Errorf("the tunnel address is %+v's", p)
	}
	w.tell(t, api.Delta{PeersSet: []api.Peer{tunnelPeer(2, 2)}}) // nothing new
	c.expect(t)
	moved := tunnelPeer(2, 2)
	moved.Underlay = netip.MustParseAddr("192.0.2.22")
	w.tell(t, api.Delta{PeersSet: []api.Peer{moved}}) // the session lives on
	c.expect(t, "set cell-2 2 100.64.0.2 192.0.2.22:51820")
	w.tell(t, api.Delta{PeersSet: []api.Peer{tunnelPeer(2, 9)}}) // another key
	c.expect(t, "remove cell-2", "set cell-2 9 100.64.0.2 192.0.2.2:51820")
	// Keys that change places: both go before either comes.
	w.tell(t, api.Delta{PeersSet: []api.Peer{tunnelPeer(2, 3), tunnelPeer(3, 9)}})
	c.expect(t, "remove cell-2", "remove cell-3", "set cell-2 3 100.64.0.2 192.0.2.2:51820", "set cell-3 9 100.64.0.3 192.0.2.3:51820")
	// A rotation: the second key comes, becomes the first, and the old one goes, with
	// the other's sessions going on; and another peer may have that at once.
	rotating := tunnelPeer(2, 3)
	rotating.NextKey = api.TunnelKey{4}
	w.tell(t, api.Delta{PeersSet: []api.Peer{rotating}})
	c.expect(t, "set cell-2 3 and 4 100.64.0.2 192.0.2.2:51820")
	rotating.Key, rotating.NextKey = api.TunnelKey{4}, api.TunnelKey{3}
	w.tell(t, api.Delta{PeersSet: []api.Peer{rotating}})
	c.expect(t, "set cell-2 4 and 3 100.64.0.2 192.0.2.2:51820")
	w.tell(t, api.Delta{PeersSet: []api.Peer{tunnelPeer(3, 3), tunnelPeer(2, 4)}})
	c.expect(t, "remove cell-3", "set cell-2 4 100.64.0.2 192.0.2.2:51820", "set cell-3 3 100.64.0.3 192.0.2.3:51820")
	if strings.Contains(log.String(), "PLAIN TEXT") {
		t.Errorf("no peer is plain: %s", log.String())
	}
	plain := tunnelPeer(3, 0)
	plain.Mode, plain.Tunnel, plain.WireGuardPort = api.ModeVXLAN, netip.Addr{}, 0
	w.tell(t, api.Delta{PeersSet: []api.Peer{plain}})
	w.tell(t, api.Delta{PeersSet: []api.Peer{plain}})
	c.expect(t, "remove cell-3")
	if n := strings.Count(log.String(), "PLAIN TEXT"); n != 1 || !slices.Equal(w.tunnels.inPlain(), []string{"cell-3"}) {
		t.Errorf("told of %d times, listed %v: %s", n, w.tunnels.inPlain(), log.String())
	}
	if p := w.fib.Load().Peer("cell-3"); p.Mode != fib.VXLAN || p.Tunnel.IsValid() {
		t.Errorf("%+v, want it plain", p)
	}
	w.tell(t, api.Delta{PeersRemoved: []string{"cell-2", "cell-3"}})
	c.expect(t, "remove cell-2", "remove cell-3")
	if len(w.tunnels.inPlain()) != 0 || w.fib.Load().PeerByTunnel(netip.MustParseAddr("100.64.0.2")) != nil {
		t.Error("something of them is left")
	}
}

// A peer whose key is refused stays of mode wireguard: nothing passes, and least
// of all in plain.
func TestPeerWithARefusedKey(t *testing.T) {
	w, c, log := tunnelWorld(t)
	c.fail = errors.New("another has the key")
	w.tell(t, api.Delta{PeersSet: []api.Peer{tunnelPeer(2, 2)}})
	if p := w.fib.Load().Peer("cell-2"); p == nil || p.Mode != fib.WireGuard || !strings.Contains(log.String(), "another has the key") {
		t.Errorf("%+v, log: %s", p, log)
	}
}

// A cell of mode vxlan speaks it with everybody: it has no key.
func TestModeVXLANIsPlainToAll(t *testing.T) {
	w, _ := emptyWorld(t)
	w.tell(t, api.Delta{PeersSet: []api.Peer{tunnelPeer(2, 2)}})
	if p := w.fib.Load().Peer("cell-2"); p.Mode != fib.VXLAN || p.Tunnel.IsValid() || len(w.tunnels.inPlain()) != 0 {
		t.Errorf("%+v", p)
	}
}

func TestBeginIsForThoseWhoKnowUs(t *testing.T) {
	w, c, _ := tunnelWorld(t)
	w.tunnels.begin = true
	w.tell(t, api.Delta{PeersSet: []api.Peer{tunnelPeer(2, 2)}})
	c.expect(t, "set cell-2 2 100.64.0.2 192.0.2.2:51820", "begin cell-2")
}

func TestOverhead(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for _, c := range []struct {
		mode     api.TunnelMode
		underlay netip.Addr
		mtu      int
	}{{api.ModeVXLAN, v4, 1450}, {api.ModeVXLAN, v6, 1430}, {api.ModeWireGuard, v4, 1390}, {api.ModeWireGuard, v6, 1370}} {
		if got := 1500 - overhead(c.mode, c.underlay); got != c.mtu {
			t.Errorf("%s over %s: MTU %d, want %d", c.mode, c.underlay, got, c.mtu)
		}
	}
}
