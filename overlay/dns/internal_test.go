package dns

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"tulle/policy"
)

var overlay = netip.MustParsePrefix("10.255.0.0/16")

// inst is an instance from "app/index address".
func inst(s string) Instance {
	what, at, _ := strings.Cut(s, " ")
	app, index, _ := strings.Cut(what, "/")
	return Instance{App: policy.AppID(app), Index: index, Address: netip.MustParseAddr(at)}
}

// to is a route from "name app" or "name address".
func to(s string) policy.Route {
	name, dest, _ := strings.Cut(s, " ")
	if a, err := netip.ParseAddr(dest); err == nil {
		return policy.Route{Name: policy.Hostname(name), Address: a}
	}
	return policy.Route{Name: policy.Hostname(name), App: policy.AppID(dest)}
}

// acme is a cell whose lease is 10.255.1.0/24, with container (10.255.1.7) of the
// app front on it, in a network with two domains.
func acme() *Names {
	n := NewNames(netip.MustParsePrefix("10.255.1.0/24"))
	n.Replace(Change{
		DomainsSet: []policy.Hostname{"apps.internal", "acme.internal"},
		RoutesSet: []policy.Route{
			to("web.apps.internal web"), to("web.apps.internal green"), to("www.acme.internal web"), to("solo.apps.internal green"),
			to("down.apps.internal down"), to("front.apps.internal front"),
			to("nats.apps.internal 10.255.3.9"), to("0.nats.apps.internal 10.255.3.9"), to("nats.apps.internal 10.255.1.99"),
			to("deep.er.apps.internal web"), to("example.com 10.255.3.9"),
		},
		InstancesSet: []Instance{inst("web/0 10.255.3.4"), inst("web/1 10.255.4.4"), inst("green/0 10.255.3.5"), inst("odd/x 10.255.3.6")},
	})
	n.SetLocal(Instance{App: "front", Address: container, Index: "0", Called: &Called{Name: "frontend"}})
	n.SetLocal(Instance{App: "web", Address: netip.MustParseAddr("10.255.1.8"), Index: "2", Called: &Called{Name: "backend"}})
	return n
}

// records are the answer's, as text without owner, time to live and class, sorted.
func records(rrs []dns.RR) []string {
	var out []string
	for _, rr := range rrs {
		f := strings.Split(rr.String(), "\t")
		out = append(out, strings.Join(f[3:], " "))
	}
	slices.Sort(out)
	return out
}

func TestInternalNames(t *testing.T) {
	outside := serveDNS(t, says("192.0.2.1"))
	r := start(t, Options{Upstreams: []netip.AddrPort{outside.addr}, Overlay: overlay, Names: acme()})
	web := []string{"A 10.255.1.8", "A 10.255.3.4", "A 10.255.3.5", "A 10.255.4.4"}
	for _, c := range []struct {
		name  string
		qtype uint16
		rcode int
		want  []string
	}{
		{"web.apps.internal", dns.TypeA, 0, web}, // of two apps, and of this cell and others
		{"WEB.Apps.INTERNAL", dns.TypeA, 0, web},
		{"web.apps.internal", dns.TypeANY, 0, web},
		{"www.acme.internal", dns.TypeA, 0, []string{"A 10.255.1.8", "A 10.255.3.4", "A 10.255.4.4"}},
		{"0.web.apps.internal", dns.TypeA, 0, []string{"A 10.255.3.4", "A 10.255.3.5"}},
		{"2.web.apps.internal", dns.TypeA, 0, []string{"A 10.255.1.8"}},
		{"ip-10-255-4-4.web.apps.internal", dns.TypeA, 0, []string{"A 10.255.4.4"}},
		{"3.web.apps.internal", dns.TypeA, dns.RcodeNameError, nil},
		{"ip-10-255-3-9.web.apps.internal", dns.TypeA, dns.RcodeNameError, nil},
		{"nats.apps.internal", dns.TypeA, 0, []string{"A 10.255.3.9"}}, // the other one is nobody's, on this cell
		{"0.nats.apps.internal", dns.TypeA, 0, []string{"A 10.255.3.9"}},
		{"1.nats.apps.internal", dns.TypeA, dns.RcodeNameError, nil},
		{"down.apps.internal", dns.TypeA, 0, nil}, // mapped, nobody there
		{"0.down.apps.internal", dns.TypeA, dns.RcodeNameError, nil},
		{"er.apps.internal", dns.TypeA, 0, nil}, // a name lies below it
		{"no.apps.internal", dns.TypeA, dns.RcodeNameError, nil},
		{"web.acme.internal", dns.TypeA, dns.RcodeNameError, nil},
		{"apps.internal", dns.TypeA, 0, nil},
		{"apps.internal", dns.TypeSOA, 0, []string{"SOA ns.apps.internal. hostmaster.apps.internal. 1 3600 600 86400 0"}},
		{"web.apps.internal", dns.TypeAAAA, 0, nil},
		{"web.apps.internal", dns.TypeMX, 0, nil},
		{"web.apps.internal", dns.TypeSRV, 0, []string{"SRV 0 1 8080 0.web.apps.internal.", "SRV 0 1 8080 1.web.apps.internal.", "SRV 0 1 8080 2.web.apps.internal."}},
		{"_8081._tcp.solo.apps.internal", dns.TypeSRV, 0, []string{"SRV 0 1 8081 0.solo.apps.internal."}},
		{"_https._tcp.1.web.apps.internal", dns.TypeSRV, 0, []string{"SRV 0 1 61443 1.web.apps.internal."}},
		{"_8081._tcp.nats.apps.internal", dns.TypeSRV, 0, []string{"SRV 0 1 8081 ip-10-255-3-9.nats.apps.internal."}},
		{"_0._tcp.web.apps.internal", dns.TypeSRV, dns.RcodeNameError, nil},
		{"_8081._tcp.no.apps.internal", dns.TypeSRV, dns.RcodeNameError, nil},
		{"_8081._tcp.web.apps.internal", dns.TypeA, 0, nil}, // there is SRV
		{"_tcp.web.apps.internal", dns.TypeA, 0, nil},       // and here below it
		{"_tcp.no.apps.internal", dns.TypeA, dns.RcodeNameError, nil},
		{"_sctp.web.apps.internal", dns.TypeA, dns.RcodeNameError, nil},
		{"a/b.apps.internal", dns.TypeA, dns.RcodeNameError, nil},
		{"4.3.255.10.in-addr.arpa", dns.TypePTR, 0, []string{"PTR 0.deep.er.apps.internal.", "PTR 0.web.apps.internal.", "PTR 0.www.acme.internal."}},
		{"8.1.255.10.in-addr.arpa", dns.TypePTR, 0, []string{"PTR 2.deep.er.apps.internal.", "PTR 2.web.apps.internal.", "PTR 2.www.acme.internal."}},
		{"9.3.255.10.in-addr.arpa", dns.TypePTR, 0, []string{"PTR 0.nats.apps.internal.", "PTR example.com.", "PTR nats.apps.internal."}},
		{"6.3.255.10.in-addr.arpa", dns.TypePTR, dns.RcodeNameError, nil},
		{"4.3.255.10.in-addr.arpa", dns.TypeA, 0, nil},
	} {
		m := exchange(t, r, new(dns.Msg).SetQuestion(dns.Fqdn(c.name), c.qtype))
		got := records(m.Answer)
		if m.Rcode != c.rcode || !cmp.Equal(got, c.want) || !m.Authoritative {
			t.Errorf("%s %s: %s %q, want %s %q, from the authority", c.name, dns.TypeToString[c.qtype],
				dns.RcodeToString[m.Rcode], got, dns.RcodeToString[c.rcode], c.want)
		}
		for _, rr := range append(append(m.Answer, m.Ns...), m.Extra...) {
			if rr.Header().Ttl != 0 {
				t.Errorf("%s: %v has a time to live", c.name, rr)
			}
		}
		if _, isSOA := append(m.Ns, nil)[0].(*dns.SOA); (len(c.want) == 0) != isSOA {
			t.Errorf("%s: authority %v beside %d answers", c.name, m.Ns, len(c.want))
		}
	}
	if n := outside.udp.Load(); n != 0 {
		t.Errorf("the outside was asked %d times", n)
	}
	for _, name := range []string{"webapps.internal", "apps.internal.example.co", "example.com"} {
		if rcode, got := resolve(t, r, name); rcode != 0 || !cmp.Equal(got, []string{"192.0.2.1"}) {
			t.Errorf("%s, of the outside: %s %v", name, dns.RcodeToString[rcode], got)
		}
	}
	if m := exchange(t, r, new(dns.Msg).SetQuestion("1.2.0.192.in-addr.arpa.", dns.TypePTR)); m.Authoritative {
		t.Errorf("an address of the outside: %v", m)
	}
}

// Containers that have IPv6 have their twins' addresses; what nobody knows to be
// one has none.
func TestIPv6(t *testing.T) {
	r := start(t, Options{Upstreams: []netip.AddrPort{}, Overlay: overlay, Network6: netip.MustParsePrefix("fd74:756c:6c65::/96"), Names: acme()})
	for _, c := range []struct {
		name  string
		qtype uint16
		want  []string
	}{
		{"solo.apps.internal", dns.TypeAAAA, []string{"AAAA fd74:756c:6c65::aff:305"}},
		{"solo.apps.internal", dns.TypeA, []string{"A 10.255.3.5"}},
		{"solo.apps.internal", dns.TypeANY, []string{"A 10.255.3.5", "AAAA fd74:756c:6c65::aff:305"}},
		{"nats.apps.internal", dns.TypeAAAA, nil},
		{"5.0.3.0.f.f.a.0.0.0.0.0.0.0.0.0.0.0.0.0.5.6.c.6.c.6.5.7.4.7.d.f.ip6.arpa", dns.TypePTR, []string{"PTR 0.solo.apps.internal.", "PTR 0.web.apps.internal."}},
	} {
		m := exchange(t, r, new(dns.Msg).SetQuestion(c.name+".", c.qtype))
		if got := records(m.Answer); m.Rcode != 0 || !cmp.Equal(got, c.want) {
			t.Errorf("%s %s: %v, want %q", c.name, dns.TypeToString[c.qtype], m, c.want)
		}
	}
}

// SRV brings the addresses of its targets along.
func TestServicesHaveTheirAddresses(t *testing.T) {
	r := start(t, Options{Upstreams: []netip.AddrPort{}, Names: acme()})
	m := exchange(t, r, new(dns.Msg).SetQuestion("solo.apps.internal.", dns.TypeSRV))
	if got := records(m.Extra); !cmp.Equal(got, []string{"A 10.255.3.5"}) || m.Extra[0].Header().Name != "0.solo.apps.internal." {
		t.Errorf("additional %v", m.Extra)
	}
}

func TestEmptyForUnknownAsTheOriginal(t *testing.T) {
	r := start(t, Options{Upstreams: []netip.AddrPort{}, Names: acme(), EmptyUnknown: true})
	m := exchange(t, r, new(dns.Msg).SetQuestion("no.apps.internal.", dns.TypeA))
	if m.Rcode != dns.RcodeSuccess || len(m.Answer)+len(m.Ns) > 0 {
		t.Errorf("got %v", m)
	}
}

// Each instance comes first about as often as any other.
func TestAnswersAreShuffled(t *testing.T) {
	r := start(t, Options{Upstreams: []netip.AddrPort{}, Names: acme()})
	first := map[string]int{}
	for range 400 {
		_, got := resolve(t, r, "web.apps.internal")
		first[got[0]]++
	}
	for a, n := range first {
		if n < 50 || len(first) != 4 {
			t.Errorf("%s came first %d times of 400, of %d", a, n, len(first))
		}
	}
}

// What is not alive is not answered: containers that are gone, cells that are lost.
func TestOnlyTheLiving(t *testing.T) {
	n := acme()
	r := start(t, Options{Upstreams: []netip.AddrPort{}, Overlay: overlay, Names: n})
	expect := func(what, name string, want ...string) {
		t.Helper()
		_, got := resolve(t, r, name)
		slices.Sort(got)
		if !cmp.Equal(got, want) {
			t.Errorf("%s: %s is %v, want %v", what, name, got, want)
		}
	}
	n.RemoveLocal(netip.MustParseAddr("10.255.1.8"))
	expect("a container of this cell is gone", "web.apps.internal", "10.255.3.4", "10.255.3.5", "10.255.4.4")
	n.SetLost([]netip.Prefix{netip.MustParsePrefix("10.255.3.0/24")})
	expect("a cell is lost", "web.apps.internal", "10.255.4.4")
	expect("a cell is lost", "nats.apps.internal")
	expect("a cell is lost", "0.web.apps.internal")
	if m := exchange(t, r, new(dns.Msg).SetQuestion("4.3.255.10.in-addr.arpa.", dns.TypePTR)); m.Rcode != dns.RcodeNameError {
		t.Errorf("the address of a lost cell: %v", m)
	}
	n.SetLost(nil)
	expect("it is back", "0.web.apps.internal", "10.255.3.4", "10.255.3.5")
	n.Apply(Change{InstancesRemoved: []netip.Addr{netip.MustParseAddr("10.255.3.4")}})
	expect("a container elsewhere is gone", "0.web.apps.internal", "10.255.3.5")
	n.Apply(Change{InstancesRemoved: []netip.Addr{netip.MustParseAddr("10.255.3.5")}, InstancesSet: []Instance{inst("web/0 10.255.3.5")}})
	expect("its address is another's", "solo.apps.internal")
	expect("its address is another's", "0.web.apps.internal", "10.255.3.5")
	n.Apply(Change{RoutesRemoved: []policy.Route{to("web.apps.internal web")}})
	expect("unmapped", "web.apps.internal")
	n.Apply(Change{RoutesRemoved: []policy.Route{to("web.apps.internal green"), to("deep.er.apps.internal web")}})
	for _, name := range []string{"web.apps.internal", "er.apps.internal"} {
		if rcode, _ := resolve(t, r, name); rcode != dns.RcodeNameError {
			t.Errorf("%s is unmapped: %s", name, dns.RcodeToString[rcode])
		}
	}
	n.Apply(Change{DomainsRemoved: []policy.Hostname{"acme.internal"}})
	if rcode, _ := resolve(t, r, "www.acme.internal"); rcode != dns.RcodeServerFailure {
		t.Errorf("of a domain that is not internal any more: %s, want what nobody to ask gives", dns.RcodeToString[rcode])
	}
}

// Who may reach no instance is told so, with the command that would allow it.
func TestProhibited(t *testing.T) {
	n := acme()
	r := start(t, Options{Upstreams: []netip.AddrPort{}, Names: n})
	why := func(name string, edns bool) string {
		t.Helper()
		q := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)
		if edns {
			q.SetEdns0(1232, false)
		}
		m := exchange(t, r, q)
		if opt := m.IsEdns0(); opt != nil {
			for _, o := range opt.Option {
				if e, ok := o.(*dns.EDNS0_EDE); ok {
					if e.InfoCode != dns.ExtendedErrorCodeProhibited || len(m.Answer) == 0 {
						t.Errorf("%s: %v with %v", name, e, m.Answer)
					}
					return e.ExtraText
				}
			}
		}
		return ""
	}
	if got := why("web.apps.internal", true); !strings.HasSuffix(got, ": tulle add-network-policy frontend backend --protocol tcp --port 8080") {
		t.Errorf("of two apps, one of them known by name: %q", got)
	}
	if got := why("solo.apps.internal", true); !strings.HasSuffix(got, ": tulle add-network-policy frontend green --protocol tcp --port 8080") {
		t.Errorf("of an app that is known by its GUID: %q", got)
	}
	n.Allow("front", "green", 1)
	n.Allow("front", "green", 1)
	n.Allow("green", "front", 1)
	for name, want := range map[string]bool{"web.apps.internal": false, "www.acme.internal": true, "nats.apps.internal": false} {
		if got := why(name, true); (got != "") != want {
			t.Errorf("%s with a policy to one of its apps: %q", name, got)
		}
	}
	n.Allow("front", "green", -1)
	if got := why("solo.apps.internal", true); got != "" {
		t.Errorf("with one of two policies: %q", got)
	}
	n.Allow("front", "green", -1)
	if why("solo.apps.internal", true) == "" || why("solo.apps.internal", false) != "" {
		t.Error("without a policy, who has EDNS is told, and nobody else")
	}
	if got := why("front.apps.internal", true); !strings.Contains(got, "frontend frontend") {
		t.Errorf("an app to itself: %q", got)
	}
}

// The command that would allow it can be typed as it is told, wherever the apps are.
func TestMend(t *testing.T) {
	const source = "11111111-0000-4000-8000-000000000001"
	app := func(id policy.AppID, name, space, org string) Instance {
		if name == "" {
			return Instance{App: id}
		}
		return Instance{App: id, Called: &Called{name, space, org}}
	}
	front := app(source, "front.end-1", "prod", "acme")
	for _, c := range []struct {
		name     string
		from, to Instance
		want     string
	}{
		{"in one space", front, app("b", "back", "prod", "acme"), "front.end-1 back"},
		{"in another space", front, app("b", "back", "data", "acme"), "front.end-1 back -s data -o acme"},
		{"in another org", front, app("b", "back", "prod", "other"), "front.end-1 back -s prod -o other"},
		{"on another cell", front, app("b", "", "", ""), "front.end-1 b"},
		{"names of several words", app(source, "front end", "prod", "acme"), app("b", "back; reboot", "prod", "acme"), source + " b"},
		{"a space of several words", front, app("b", "back", "big data", "acme"), "front.end-1 b"},
		{"what looks like a flag", app(source, "-front", "", ""), app("b", "--back", "", ""), source + " b"},
	} {
		if got := mend(c.from, c.to, transport{"tcp", appPort}); !strings.HasSuffix(got, ": tulle add-network-policy "+c.want+" --protocol tcp --port 8080") {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// Who asks for a port is told of that one.
func TestMendNamesThePort(t *testing.T) {
	r := start(t, Options{Upstreams: []netip.AddrPort{}, Names: acme()})
	for name, want := range map[string]string{
		"web.apps.internal":             "tcp --port 8080",
		"_http._tcp.web.apps.internal":  "tcp --port 8080",
		"_https._tcp.web.apps.internal": "tcp --port 61443",
		"_5353._udp.web.apps.internal":  "udp --port 5353",
	} {
		m := exchange(t, r, new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeSRV).SetEdns0(1232, false))
		if got := explanation(m); !strings.HasSuffix(got, " --protocol "+want) {
			t.Errorf("%s: %q, want %s", name, got, want)
		}
	}
}

// explanation is the extended error's text, "" where there is none.
func explanation(m *dns.Msg) string {
	for _, o := range m.IsEdns0().Option {
		if e, ok := o.(*dns.EDNS0_EDE); ok {
			return e.ExtraText
		}
	}
	return ""
}

// An explanation that does not fit is left out, and nothing that it explains; over
// TCP it is there.
func TestExplanationYields(t *testing.T) {
	n := acme()
	long := strings.Repeat("x", 240)
	n.SetLocal(Instance{App: "front", Address: container, Index: "0", Called: &Called{long, "here", long}})
	n.SetLocal(Instance{App: "web", Address: netip.MustParseAddr("10.255.1.8"), Index: "2", Called: &Called{long, long, long}})
	r := start(t, Options{Upstreams: []netip.AddrPort{}, Names: n})
	for _, c := range []struct {
		size  uint16
		limit int
		told  bool
	}{{512, 0, false}, {900, 0, false}, {1232, 0, true}, {512, dns.MaxMsgSize, true}} {
		b, err := new(dns.Msg).SetQuestion("web.apps.internal.", dns.TypeA).SetEdns0(c.size, false).Pack()
		if err != nil {
			t.Fatal(err)
		}
		answer, _ := r.immediate(query{from: container, message: b, limit: c.limit})
		m := new(dns.Msg)
		if err := m.Unpack(answer); err != nil {
			t.Errorf("%d bytes: an answer of %d: %v", c.size, len(answer), err)
			continue
		}
		if got := explanation(m); len(m.Answer) != 4 || (got != "") != c.told || m.Truncated == c.told {
			t.Errorf("%d bytes: %d addresses, truncated %v, with %.60q; told should be %v", c.size, len(m.Answer), m.Truncated, got, c.told)
		}
	}
}

func TestReverse(t *testing.T) {
	for name, want := range map[string]string{
		"4.3.255.10.in-addr.arpa.": "10.255.3.4",
		"4.3.255.10.IN-ADDR.ARPA.": "10.255.3.4",
		"3.255.10.in-addr.arpa.":   "",
		"x.3.255.10.in-addr.arpa.": "",
		"b.a.9.8.7.6.5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.": "2001:db8::567:89ab",
		"g.a.9.8.7.6.5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.": "",
		"web.apps.internal.": "",
	} {
		a, ok := reverse(name)
		if got := a.String(); ok != (want != "") || ok && got != want {
			t.Errorf("%s is the name of %s, %v, want %q", name, a, ok, want)
		}
	}
}

// 100,000 names, each of an app with an instance, cost at most 100 MiB.
func TestManyNamesFit(t *testing.T) {
	const names = 100_000
	before := heap()
	n := NewNames(netip.MustParsePrefix("10.1.0.0/24"))
	n.Replace(many(names))
	used := heap() - before
	if count, instances := n.Count(); count != names || instances != names {
		t.Fatalf("%d names, %d instances", count, instances)
	}
	t.Logf("%d names take %.1f MiB", names, float64(used)/(1<<20))
	if used > 100<<20 {
		t.Errorf("%d names take %d MiB, want at most 100", names, used>>20)
	}
	begun := time.Now()
	r := start(t, Options{Upstreams: []netip.AddrPort{}, Names: n})
	if _, got := resolve(t, r, "app-99999.apps.internal"); len(got) != 1 {
		t.Errorf("the last name is %v, after %s", got, time.Since(begun))
	}
}
