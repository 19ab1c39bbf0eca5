package policy

import (
	"net/netip"
	"slices"
	"testing"
)

func TestPublicGroup(t *testing.T) {
	rules := PublicGroup().Rules
	for _, r := range rules {
		if err := r.Check(); err != nil {
			t.Fatal(err)
		}
	}
	special := []string{"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
		"192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
		// Of IPv6 all outside 2000::/3: unspecified, loopback, compatible, mapped, NAT64, discard, unique local, link-local, multicast and what nobody gave out.
		"::/3", "4000::/2", "8000::/1", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"}
	allowed := func(a netip.Addr) bool {
		return slices.ContainsFunc(rules, func(r SecurityRule) bool { return r.Allows(Packet{Protocol: "tcp", To: a, Port: 443}) })
	}
	for _, s := range []string{"::", "::1", "::7f00:1", "::ffff:10.0.0.1", "::ffff:8.8.8.8", "64:ff9b::a00:1", "64:ff9b:1::1", "100::1", "2001::1", "2001:2::1", "2001:db8::1",
		"2002:a00:1::1", "2002:808:808::1", "fc00::1", "fd74:756c:6c65::aff:701", "fe80::1", "fec0::1", "ff02::1", "3fff::1"} {
		if allowed(netip.MustParseAddr(s)) {
			t.Errorf("%s is public", s)
		}
	}
	for _, s := range []string{"2606:4700:4700::1111", "2001:4860:4860::8888", "2a00:1450::1", "2400:cb00::1"} {
		if !allowed(netip.MustParseAddr(s)) {
			t.Errorf("%s is not public", s)
		}
	}
	for _, s := range special {
		p := netip.MustParsePrefix(s)
		first, last := p.Addr(), lastOf(p)
		for _, a := range []netip.Addr{first, last} {
			if allowed(a) {
				t.Errorf("%v of %s is public", a, s)
			}
		}
		// The neighbours are, unless they are another's.
		for _, a := range []netip.Addr{first.Prev(), last.Next()} {
			other := !a.IsValid()
			for _, o := range special {
				other = other || netip.MustParsePrefix(o).Contains(a)
			}
			if !other && !allowed(a) {
				t.Errorf("%v beside %s is not public", a, s)
			}
		}
	}
}
