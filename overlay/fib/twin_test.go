package fib

import (
	"net/netip"
	"testing"
)

func TestTwins(t *testing.T) {
	a := netip.MustParseAddr("10.255.54.7")
	if got := Twin(a); got != netip.MustParseAddr("fd74:756c:6c65::aff:3607") || Name(got) != a || Name(a) != a {
		t.Errorf("twin %s, name %s", got, Name(got))
	}
	if got := TwinPrefix(netip.MustParsePrefix("10.255.54.0/24")); got != netip.MustParsePrefix("fd74:756c:6c65::aff:3600/120") {
		t.Errorf("prefix %s", got)
	}
	for _, s := range []string{"::ffff:10.255.54.7", "::10.255.54.7", "fd74:756c:6c66::aff:3607", "fd74:756c:6c65:1::aff:3607", "fe80::aff:3607", "::"} {
		if n := Name(netip.MustParseAddr(s)); n.IsValid() {
			t.Errorf("%s stands for %s", s, n)
		}
	}
	if n := Name(Twin(a).WithZone("eth0")); n.IsValid() {
		t.Errorf("an address of a zone stands for %s", n)
	}
	if Name(netip.Addr{}).IsValid() {
		t.Error("no address stands for one")
	}
}

// Both names find the same endpoint, and the same lease.
func TestLookupOfTwins(t *testing.T) {
	tab, err := New(netip.MustParsePrefix("10.255.0.0/16"), netip.MustParsePrefix("10.255.1.0/24"))
	if err != nil {
		t.Fatal(err)
	}
	tab.Update(func(b *Builder) {
		b.PutLocal(Local{Addr: netip.MustParseAddr("10.255.1.2"), App: "web", Incarnation: 1})
		b.PutPeer(Peer{Name: "two", Underlay: netip.MustParseAddrPort("192.0.2.2:4789"), Subnet: netip.MustParsePrefix("10.255.2.0/24"), Generation: 1})
		b.PutRemote(Remote{Addr: netip.MustParseAddr("10.255.2.3"), App: "db", Incarnation: 2})
	})
	s := tab.Load()
	for _, a := range []string{"10.255.1.2", "10.255.2.3", "10.255.2.4", "10.255.9.9", "10.254.1.2"} {
		v4 := netip.MustParseAddr(a)
		l4, r4, p4 := s.Lookup(v4)
		l6, r6, p6 := s.Lookup(Twin(v4))
		if l4 != l6 || r4 != r6 || p4 != p6 || s.Inside(v4) != s.Inside(Twin(v4)) || s.Own(v4) != s.Own(Twin(v4)) {
			t.Errorf("%s and its twin are not the same", a)
		}
	}
	if l, r, p := s.Lookup(netip.MustParseAddr("2001:db8::1")); l != nil || r != nil || p != nil || s.Inside(netip.MustParseAddr("2001:db8::1")) {
		t.Error("an address of the world is known")
	}
}
