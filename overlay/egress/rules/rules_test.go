package rules

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"tulle/policy"
)

func rule(protocol, destination, ports string) policy.SecurityRule {
	return policy.SecurityRule{Protocol: protocol, Destination: destination, Ports: ports}
}

func icmp(destination string, typ, code int) policy.SecurityRule {
	return policy.SecurityRule{Protocol: "icmp", Destination: destination, Type: typ, Code: code}
}

func to(s string) policy.Packet {
	protocol, at, _ := strings.Cut(s, " ")
	if protocol == "icmp" {
		var p policy.Packet
		var a string
		fmt.Sscanf(at, "%s %d %d", &a, &p.Type, &p.Code)
		p.Protocol, p.To = protocol, netip.MustParseAddr(a)
		return p
	}
	ap := netip.MustParseAddrPort(at)
	return policy.Packet{Protocol: protocol, To: ap.Addr(), Port: ap.Port()}
}

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		name   string
		rules  []policy.SecurityRule
		packet string
		want   Reason
	}{
		{"nothing is allowed without a rule", nil, "tcp 8.8.8.8:53", NoRule},
		{"an address", []policy.SecurityRule{rule("tcp", "8.8.8.8", "53")}, "tcp 8.8.8.8:53", Allowed},
		{"another address", []policy.SecurityRule{rule("tcp", "8.8.8.8", "53")}, "tcp 8.8.8.9:53", NoRule},
		{"another port", []policy.SecurityRule{rule("tcp", "8.8.8.8", "53")}, "tcp 8.8.8.8:54", NoRule},
		{"another protocol", []policy.SecurityRule{rule("tcp", "8.8.8.8", "53")}, "udp 8.8.8.8:53", NoRule},
		{"a prefix's first", []policy.SecurityRule{rule("udp", "10.1.0.0/16", "1-65535")}, "udp 10.1.0.0:1", Allowed},
		{"a prefix's last", []policy.SecurityRule{rule("udp", "10.1.0.0/16", "1-65535")}, "udp 10.1.255.255:65535", Allowed},
		{"behind a prefix", []policy.SecurityRule{rule("udp", "10.1.0.0/16", "1-65535")}, "udp 10.2.0.0:1", NoRule},
		{"a prefix with host bits", []policy.SecurityRule{rule("udp", "10.1.2.3/16", "7")}, "udp 10.1.0.1:7", Allowed},
		{"a range's ends", []policy.SecurityRule{rule("tcp", "10.0.0.5-10.0.1.7", "80")}, "tcp 10.0.1.7:80", Allowed},
		{"before a range", []policy.SecurityRule{rule("tcp", "10.0.0.5-10.0.1.7", "80")}, "tcp 10.0.0.4:80", NoRule},
		{"a comma list", []policy.SecurityRule{rule("tcp", "10.0.0.1,192.0.2.0/24,10.3.0.1-10.3.0.9", "80")}, "tcp 10.3.0.4:80", Allowed},
		{"a port list", []policy.SecurityRule{rule("tcp", "10.0.0.1", "80,443,8000-8010")}, "tcp 10.0.0.1:8010", Allowed},
		{"between a port list", []policy.SecurityRule{rule("tcp", "10.0.0.1", "80,443,8000-8010")}, "tcp 10.0.0.1:444", NoRule},
		{"a port list with blanks", []policy.SecurityRule{rule("tcp", "10.0.0.1", "80, 443 , 8000 - 8010")}, "tcp 10.0.0.1:8005", Allowed},
		{"a type in a rule of tcp", []policy.SecurityRule{{Protocol: "tcp", Destination: "10.0.0.1", Ports: "80", Type: -1, Code: 300}}, "tcp 10.0.0.1:80", Allowed},
		{"all is any protocol", []policy.SecurityRule{rule("all", "10.0.0.0/8", "")}, "icmp 10.2.3.4 8 0", Allowed},
		{"all, tcp", []policy.SecurityRule{rule("all", "10.0.0.0/8", "")}, "tcp 10.2.3.4:1", Allowed},
		{"icmp type and code", []policy.SecurityRule{icmp("10.0.0.1", 8, 0)}, "icmp 10.0.0.1 8 0", Allowed},
		{"icmp other code", []policy.SecurityRule{icmp("10.0.0.1", 8, 0)}, "icmp 10.0.0.1 8 1", NoRule},
		{"icmp any code", []policy.SecurityRule{icmp("10.0.0.1", 8, -1)}, "icmp 10.0.0.1 8 3", Allowed},
		{"icmp any type", []policy.SecurityRule{icmp("10.0.0.1", -1, 0)}, "icmp 10.0.0.1 13 0", Allowed},
		{"icmp any type, other code", []policy.SecurityRule{icmp("10.0.0.1", -1, 0)}, "icmp 10.0.0.1 13 1", NoRule},
		{"icmp any", []policy.SecurityRule{icmp("10.0.0.1", -1, -1)}, "icmp 10.0.0.1 8 0", Allowed},
		{"icmp any as the original writes it", []policy.SecurityRule{icmp("10.0.0.1", 255, 255)}, "icmp 10.0.0.1 8 0", Allowed},
		{"icmp rule and tcp", []policy.SecurityRule{icmp("10.0.0.1", -1, -1)}, "tcp 10.0.0.1:80", NoRule},
		{"a wide rule around narrow ones", []policy.SecurityRule{rule("tcp", "10.0.0.0/8", "80"), rule("tcp", "10.5.0.0/16", "81"), rule("tcp", "10.9.0.1", "82")}, "tcp 10.200.0.1:80", Allowed},
		{"mapped addresses are other addresses", []policy.SecurityRule{rule("tcp", "0.0.0.0/0", "80")}, "tcp [::ffff:10.0.0.1]:80", NoRule},
		{"IPv6", []policy.SecurityRule{rule("tcp", "10.0.0.1,2001:db8::/32", "80")}, "tcp [2001:db8:ffff::1]:80", Allowed},
		{"behind an IPv6 range", []policy.SecurityRule{rule("tcp", "2001:db8::5-2001:db8::9", "80")}, "tcp [2001:db8::a]:80", NoRule},
		{"all of IPv4 is none of IPv6", []policy.SecurityRule{rule("all", "0.0.0.0/0", "")}, "tcp [2001:db8::1]:80", NoRule},
		{"all of IPv6 is none of IPv4", []policy.SecurityRule{rule("all", "::/0", "")}, "tcp 10.0.0.1:80", NoRule},
		{"icmp to IPv6 is ICMPv6", []policy.SecurityRule{icmp("2001:db8::/32", 128, 0)}, "icmp 2001:db8::1 128 0", Allowed},
		{"and has its numbers", []policy.SecurityRule{icmp("2001:db8::/32", 8, 0)}, "icmp 2001:db8::1 128 0", NoRule},
		{"icmpv6", []policy.SecurityRule{{Protocol: "icmpv6", Destination: "::/0", Type: -1, Code: -1}}, "icmp 2001:db8::1 128 0", Allowed},
		{"icmpv6, other type", []policy.SecurityRule{{Protocol: "icmpv6", Destination: "::/0", Type: 8}}, "icmp 2001:db8::1 128 0", NoRule},
		{"icmpv6 is no ICMP", []policy.SecurityRule{{Protocol: "icmpv6", Destination: "::/0", Type: -1, Code: -1}}, "icmp 10.0.0.1 8 0", NoRule},
		{"IPv6 denied in spite of a rule", []policy.SecurityRule{rule("all", "::/0", "")}, "tcp [fd12::1]:80", DenyNetwork},
		{"denied in spite of a rule", []policy.SecurityRule{rule("all", "0.0.0.0/0", "")}, "tcp 172.16.3.4:80", DenyNetwork},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, bad := Compile([]Group{{"g", c.rules}}, []netip.Prefix{netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("fc00::/7")})
			if len(bad) != 0 {
				t.Fatal(bad)
			}
			if got := s.Judge(to(c.packet)).Reason; got != c.want {
				t.Errorf("%s: %s, want %s", c.packet, got, c.want)
			}
		})
	}
}

func TestBadRuleBlocksNoOther(t *testing.T) {
	s, bad := Compile([]Group{
		{"dns", []policy.SecurityRule{rule("tcp", "8.8.8.8", "53"), rule("tcp", "8.8.8.8,8.8.4.4/33", "54"), rule("sctp", "8.8.8.8", ""), rule("udp", "8.8.8.8", "")}},
		{"web", []policy.SecurityRule{rule("tcp", "1.1.1.1", "443")}},
	}, nil)
	if len(bad) != 3 {
		t.Fatalf("%d errors, want 3: %v", len(bad), bad)
	}
	for i, want := range []string{`security group "dns", rule 2 is left out: destination`, `security group "dns", rule 3 is left out: protocol "sctp"`, `security group "dns", rule 4 is left out: ports ""`} {
		if !strings.Contains(bad[i].Error(), want) {
			t.Errorf("error %q does not say %q", bad[i], want)
		}
	}
	for packet, want := range map[string]Reason{"tcp 8.8.8.8:53": Allowed, "tcp 8.8.8.8:54": NoRule, "udp 8.8.8.8:53": NoRule, "tcp 1.1.1.1:443": Allowed} {
		if got := s.Judge(to(packet)).Reason; got != want {
			t.Errorf("%s: %s, want %s", packet, got, want)
		}
	}
}

func TestLastRuleDecidesAboutTheLog(t *testing.T) {
	logged, silent := rule("tcp", "10.0.0.0/8", "80"), rule("tcp", "10.0.0.1", "80")
	logged.Log = true
	for _, c := range []struct {
		name  string
		rules []policy.SecurityRule
		log   bool
		named bool
	}{
		{"silent last", []policy.SecurityRule{logged, silent}, false, true},
		{"logged last", []policy.SecurityRule{silent, logged}, true, true},
		{"logged alone", []policy.SecurityRule{logged}, true, false},
	} {
		s, _ := Compile([]Group{{"g", c.rules}}, nil)
		if v := s.Judge(to("tcp 10.0.0.1:80")); v.Log != c.log || v.Named != c.named || v.Group != "g" {
			t.Errorf("%s: %+v", c.name, v)
		}
	}
}

func TestHoldsFor(t *testing.T) {
	g := policy.SecurityGroup{RunningDefault: true, StagingSpaces: []string{"s1"}}
	for _, c := range []struct {
		w     policy.Workload
		space string
		want  bool
	}{
		{policy.WorkloadApp, "", true}, {policy.WorkloadTask, "s9", true}, {policy.WorkloadStaging, "s1", true},
		{policy.WorkloadStaging, "s2", false}, {policy.WorkloadStaging, "", false}, {"", "s1", false}, {"sidecar", "s1", false},
	} {
		if got := g.HoldsFor(c.w, c.space); got != c.want {
			t.Errorf("workload %q in space %q: %t", c.w, c.space, got)
		}
	}
}

// near is one of a family's few addresses.
func near(six bool, b, c byte) netip.Addr {
	if six {
		return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 12: 10, 0, b, c})
	}
	return netip.AddrFrom4([4]byte{10, 0, b, c})
}

// random makes rules over few addresses and ports, so that they meet.
func random(r *rand.Rand) policy.SecurityRule {
	six := r.IntN(3) == 0
	address := func() netip.Addr { return near(six, byte(r.IntN(3)), byte(r.IntN(8))) }
	var parts []string
	for range 1 + r.IntN(3) {
		a, b := address(), address()
		switch r.IntN(4) {
		case 0:
			parts = append(parts, a.String())
		case 1:
			parts = append(parts, fmt.Sprintf("%v/%d", a, a.BitLen()-32+r.IntN(36)))
		default:
			parts = append(parts, a.String()+"-"+b.String())
		}
	}
	out := rule([]string{"tcp", "udp", "icmp", "icmpv6", "all", "gre"}[r.IntN(6)], strings.Join(parts, ","), "")
	switch out.Protocol {
	case "tcp", "udp":
		out.Ports = []string{"80", "80-83", "79,81", "82-80", "1-65535"}[r.IntN(5)]
	case "icmp", "icmpv6":
		out.Type, out.Code = r.IntN(4)-1, r.IntN(4)-1
		if r.IntN(4) == 0 {
			out.Type = 255
		}
	}
	return out
}

// checkAgainstTwin holds a compiled set against the obvious evaluation.
func checkAgainstTwin(t *testing.T, rs []policy.SecurityRule, p policy.Packet) {
	t.Helper()
	want := NoRule
	for _, r := range rs {
		if r.Allows(p) {
			want = Allowed
		}
	}
	s, _ := Compile([]Group{{"g", rs}}, nil)
	if got := s.Judge(p).Reason; got != want {
		t.Fatalf("%+v under %+v: %s, the obvious evaluation says %s", p, rs, got, want)
	}
}

func TestJudgeAgainstObviousTwin(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	allowed := 0
	for range 3000 {
		rs := make([]policy.SecurityRule, r.IntN(8))
		for i := range rs {
			rs[i] = random(r)
		}
		for range 20 {
			p := policy.Packet{Protocol: []string{"tcp", "udp", "icmp"}[r.IntN(3)], To: near(r.IntN(3) == 0, byte(r.IntN(4)), byte(r.IntN(9)))}
			if p.Protocol == "icmp" {
				p.Type, p.Code = uint8(r.IntN(4)), uint8(r.IntN(4))
			} else {
				p.Port = uint16(78 + r.IntN(8))
			}
			checkAgainstTwin(t, rs, p)
			if s, _ := Compile([]Group{{"g", rs}}, nil); s.Judge(p).Reason == Allowed {
				allowed++
			}
		}
	}
	if allowed < 5000 {
		t.Errorf("only %d of 60,000 packets were allowed: the rules do not meet the packets", allowed)
	}
}

// FuzzJudge feeds rules as an operator or a Cloud Controller writes them: no rule
// makes Compile panic, and what is compiled says what the obvious twin says.
func FuzzJudge(f *testing.F) {
	f.Add("tcp", "10.0.0.1-10.0.0.9,10.1.0.0/16", "80,443,8000-8010", 0, 0, "10.0.0.3", uint16(443), uint8(0), uint8(0))
	f.Add("icmp", "0.0.0.0/0", "", -1, 255, "1.2.3.4", uint16(0), uint8(8), uint8(0))
	f.Add("tcp", "10.0.0.1", " 80 ,\t8000 - 8010", -1, 300, "10.0.0.1", uint16(8000), uint8(0), uint8(0))
	f.Add("icmpv6", "2001:db8::-2001:db8::9,::/0", "", 128, 0, "2001:db8::3", uint16(0), uint8(128), uint8(0))
	f.Add("all", "255.255.255.255-0.0.0.0", "", 0, 0, "255.255.255.255", uint16(1), uint8(0), uint8(0))
	f.Fuzz(func(t *testing.T, protocol, destination, ports string, typ, code int, addr string, port uint16, ptype, pcode uint8) {
		a, err := netip.ParseAddr(addr)
		if err != nil {
			return
		}
		r := policy.SecurityRule{Protocol: protocol, Destination: destination, Ports: ports, Type: typ, Code: code}
		for _, p := range []string{"tcp", "udp", "icmp"} {
			checkAgainstTwin(t, []policy.SecurityRule{r}, policy.Packet{Protocol: p, To: a, Port: port, Type: ptype, Code: pcode})
		}
	})
}

func BenchmarkJudge(b *testing.B) {
	var rs []policy.SecurityRule
	for i := range 1000 {
		rs = append(rs, rule("tcp", fmt.Sprintf("10.%d.%d.0/24", i/250, i%250), "443"))
	}
	s, _ := Compile([]Group{{"g", rs}}, nil)
	p := to("tcp 10.2.17.5:443")
	b.ReportAllocs()
	for b.Loop() {
		if s.Judge(p).Reason != Allowed {
			b.Fatal("not allowed")
		}
	}
}
