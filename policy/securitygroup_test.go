package policy

import (
	"strings"
	"testing"
)

func TestSecurityRule(t *testing.T) {
	rule := func(protocol, destination, ports string, icmp ...int) SecurityRule {
		r := SecurityRule{Protocol: protocol, Destination: destination, Ports: ports}
		if len(icmp) == 2 {
			r.Type, r.Code = icmp[0], icmp[1]
		}
		return r
	}
	for _, tt := range []struct {
		name string
		rule SecurityRule
		want string // the error; "": good
	}{
		{"a port", rule("tcp", "10.20.0.0/24", "5432"), ""},
		{"ports and ranges", rule("udp", "10.0.0.1", "80,443,8000-8010"), ""},
		{"a range of addresses", rule("tcp", "10.0.0.1-10.0.0.9", "1-65535"), ""},
		{"a list", rule("tcp", "10.0.0.1,10.1.0.0/16,10.2.0.1-10.2.0.1", "1"), ""},
		{"a prefix with host bits", rule("all", "10.0.0.9/24", ""), ""},
		{"icmp, any", rule("icmp", "0.0.0.0/0", "", -1, -1), ""},
		{"icmp", rule("icmp", "0.0.0.0/0", "", 8, 255), ""},
		{"protocol", rule("sctp", "10.0.0.1", "1"), `protocol "sctp": must be tcp, udp, icmp, icmpv6 or all`},
		{"protocol in capitals", rule("TCP", "10.0.0.1", "1"), `protocol "TCP"`},
		{"no ports", rule("tcp", "10.0.0.1", ""), `ports "": is missing`},
		{"port 0", rule("tcp", "10.0.0.1", "0"), `ports "0": "0" is not a port from 1 to 65535`},
		{"port 65536", rule("tcp", "10.0.0.1", "80,65536"), `ports "80,65536": "65536" is not a port`},
		{"blanks around ports", rule("tcp", "10.0.0.1", " 80, 81 ,\t8000 - 8010"), ""},
		{"a blank within a port", rule("tcp", "10.0.0.1", "8 0"), `"8 0" is not a port`},
		{"a blank for a port", rule("tcp", "10.0.0.1", "80, "), `" " is not a port`},
		{"a sign behind a blank", rule("tcp", "10.0.0.1", "80, +81"), `" +81" is not a port`},
		{"a sign", rule("tcp", "10.0.0.1", "+80"), `"+80" is not a port`},
		{"an open range", rule("udp", "10.0.0.1", "80-"), `"80-" is not a port`},
		{"a range backwards", rule("udp", "10.0.0.1", "90-80"), `"90-80" starts behind its end`},
		{"icmp with ports", rule("icmp", "10.0.0.1", "80"), `ports "80": protocol icmp has none`},
		{"all with ports", rule("all", "10.0.0.1", "80"), `ports "80": protocol all has none`},
		{"icmp type", rule("icmp", "10.0.0.1", "", 256, 0), "type 256: must be -1 (any) to 255"},
		{"icmp code", rule("icmp", "10.0.0.1", "", 0, -2), "code -2: must be -1 (any) to 255"},
		{"tcp with a code", rule("tcp", "10.0.0.1", "80", 0, 3), ""},
		{"all with a type", rule("all", "10.0.0.1", "", -1, -1), ""},
		{"no destination", rule("all", "", ""), `destination "": is missing`},
		{"a name", rule("all", "example.com", ""), `destination "example.com": "example.com" is not an IPv4 or IPv6 address`},
		{"no address", rule("all", "10.0.0.1,10.0.0.300", ""), `destination "10.0.0.1,10.0.0.300": "10.0.0.300" is not an IPv4 or IPv6 address`},
		{"a prefix too long", rule("all", "10.0.0.0/33", ""), `"10.0.0.0/33" is not`},
		{"leading zeros", rule("all", "010.0.0.1", ""), `"010.0.0.1" is not`},
		{"a blank between", rule("all", "10.0.0.1, 10.0.0.2", ""), `" 10.0.0.2" is not`},
		{"addresses backwards", rule("all", "10.0.0.9-10.0.0.1", ""), `"10.0.0.9-10.0.0.1" starts behind its end`},
		{"half a range", rule("all", "10.0.0.9-", ""), `"10.0.0.9-" is not a range of IPv4 or of IPv6 addresses`},
		{"IPv6", rule("all", "2001:db8::/32,2001:db8::1,2001:db8::5-2001:db8::9,::/0", ""), ""},
		{"both families", rule("tcp", "10.0.0.1,2001:db8::1", "80"), ""},
		{"a range of both", rule("tcp", "10.0.0.1-2001:db8::1", "80"), "is not a range of IPv4 or of IPv6 addresses"},
		{"an IPv6 prefix too long", rule("all", "2001:db8::/129", ""), `"2001:db8::/129" is not`},
		{"IPv6 backwards", rule("all", "2001:db8::9-2001:db8::1", ""), "starts behind its end"},
		{"a zone", rule("all", "fe80::1%eth0", ""), `"fe80::1%eth0" is not`},
		{"IPv4 in IPv6", rule("all", "::ffff:10.0.0.1", ""), `"::ffff:10.0.0.1" is not`},
		{"a prefix of IPv4 in IPv6", rule("all", "::ffff:10.0.0.0/104", ""), `"::ffff:10.0.0.0/104" is not`},
		{"icmp of both", rule("icmp", "10.0.0.1,2001:db8::1", "", -1, -1), ""},
		{"icmpv6", rule("icmpv6", "::/0", "", 128, 0), ""},
		{"icmpv6 with ports", rule("icmpv6", "::/0", "80"), `ports "80": protocol icmpv6 has none`},
		{"icmpv6 over IPv4", rule("icmpv6", "2001:db8::1,10.0.0.0/8", "", 8, 0), "protocol icmpv6 goes to IPv6 addresses alone"},
	} {
		err := tt.rule.Check()
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}
