package policy

import (
	"net/netip"
	"testing"
)

func TestPublicGroup(t *testing.T) {
	rule := PublicGroup().Rules[0]
	if err := rule.Check(); err != nil {
		t.Fatal(err)
	}
	special := []string{"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
		"192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"}
	allowed := func(a netip.Addr) bool { return rule.Allows(Packet{Protocol: "tcp", To: a, Port: 443}) }
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
