package api

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
)

func TestLeasedTunnel(t *testing.T) {
	for _, c := range []struct{ network, subnet, want string }{
		{"10.255.0.0/16", "10.255.1.0/24", "100.64.0.1"},
		{"10.255.0.0/16", "10.255.255.0/24", "100.64.0.255"},
		{"10.0.0.0/8", "10.1.2.0/24", "100.64.1.2"},
		{"10.0.0.0/8", "10.255.255.252/30", "100.127.255.255"},
		{"10.255.0.0/16", "10.255.0.0/24", ""}, // the first is never leased
		{"10.255.0.0/16", "10.254.1.0/24", ""}, // elsewhere
		{"10.0.0.0/8", "10.1.2.4/31", ""},      // more than there are addresses
		{"fd00::/16", "10.1.2.0/24", ""},
	} {
		got := LeasedTunnel(netip.MustParsePrefix(c.network), netip.MustParsePrefix(c.subnet))
		if got.IsValid() != (c.want != "") || got.IsValid() && got.String() != c.want {
			t.Errorf("%s in %s: %v, want %q", c.subnet, c.network, got, c.want)
		}
		if got.IsValid() && !TunnelNetwork.Contains(got) {
			t.Errorf("%s lies outside %s", got, TunnelNetwork)
		}
	}
}

// No two leases have one tunnel address.
func TestLeasedTunnelIsTheLeasesAlone(t *testing.T) {
	network := netip.MustParsePrefix("10.240.0.0/12")
	seen := make(map[netip.Addr]netip.Prefix)
	a := network.Addr().As4()
	for i := 1; i < 1<<12; i++ {
		a[1], a[2] = 240+byte(i>>8), byte(i)
		subnet := netip.PrefixFrom(netip.AddrFrom4(a), 24)
		tunnel := LeasedTunnel(network, subnet)
		if other, taken := seen[tunnel]; taken || !tunnel.IsValid() {
			t.Fatalf("%s and %s both have %s", subnet, other, tunnel)
		}
		seen[tunnel] = subnet
	}
}

func TestTunnelKeyText(t *testing.T) {
	key := TunnelKey{31: 9}
	b, err := json.Marshal(LeaseRequest{Key: key})
	if err != nil || !strings.Contains(string(b), `"key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAk="`) {
		t.Fatalf("%s, %v", b, err)
	}
	var back LeaseRequest
	if err := json.Unmarshal(b, &back); err != nil || back.Key != key {
		t.Fatalf("%v, %v", back.Key, err)
	}
	for _, bad := range []string{"x", "AAAA", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAl=", strings.Repeat("A", 44)} {
		if err := new(TunnelKey).UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q is taken for a key", bad)
		}
	}
	if b, err := json.Marshal(Peer{Name: "plain"}); err != nil || strings.Contains(string(b), "key") || strings.Contains(string(b), "tunnel") {
		t.Errorf("a peer without tunnel: %s, %v", b, err)
	}
}
