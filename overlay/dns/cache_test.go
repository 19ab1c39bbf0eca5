package dns

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// What a resolver said is asked once for as long as it holds, and counted down.
func TestCache(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	soaOf := func(ttl, minimum uint32) dns.RR {
		return &dns.SOA{Hdr: dns.RR_Header{Name: "example.com.", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: ttl},
			Ns: "ns.example.com.", Mbox: "root.example.com.", Minttl: minimum}
	}
	alias := func(q *dns.Msg, ttl uint32) dns.RR {
		return &dns.CNAME{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: ttl}, Target: "elsewhere.example."}
	}
	outside := serveDNS(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		switch q.Question[0].Name {
		case "none.example.com.":
			m.Rcode, m.Ns = dns.RcodeNameError, []dns.RR{soaOf(3600, 30)}
		case "silent-on-time.example.com.":
			m.Rcode = dns.RcodeNameError
		case "broken.example.com.":
			m.Rcode = dns.RcodeServerFailure
		case "instant.example.com.":
			m = reply(q, "192.0.2.1")
			m.Answer[0].Header().Ttl = 0
		case "long.example.com.":
			m = reply(q, "192.0.2.1")
			m.Answer[0].Header().Ttl = 1 << 30
		case "alias-to-none.example.com.":
			m.Rcode, m.Answer, m.Ns = dns.RcodeNameError, []dns.RR{alias(q, 5)}, []dns.RR{soaOf(3600, 300)}
		case "alias-to-nothing.example.com.":
			m.Answer, m.Ns = []dns.RR{alias(q, 3600)}, []dns.RR{soaOf(3600, 30)}
		case "alias-to-nothing-for-long.example.com.":
			m.Answer, m.Ns = []dns.RR{alias(q, 3600)}, []dns.RR{soaOf(3600, 3600)}
		case "alias-alone.example.com.":
			m.Answer = []dns.RR{alias(q, 3600)}
		case "alias.example.com.":
			m = reply(q, "192.0.2.1")
			m.Answer = append([]dns.RR{alias(q, 20)}, m.Answer...)
		default:
			m = reply(q, "192.0.2.1") // 60 s
		}
		w.WriteMsg(m)
	})
	r := start(t, Options{Upstreams: []netip.AddrPort{outside.addr}, Now: func() time.Time { return now }})
	for _, c := range []struct {
		name string
		kept time.Duration
	}{
		{"www.example.com.", time.Minute},
		{"none.example.com.", 30 * time.Second},
		{"long.example.com.", maxPositive},
		{"silent-on-time.example.com.", 0},
		{"broken.example.com.", 0},
		{"instant.example.com.", 0},
		{"alias.example.com.", 20 * time.Second},
		{"alias-to-none.example.com.", 5 * time.Second},
		{"alias-to-nothing.example.com.", 30 * time.Second},
		{"alias-to-nothing-for-long.example.com.", maxNegative},
		{"alias-alone.example.com.", 0},
	} {
		ask := func() *dns.Msg { return exchange(t, r, new(dns.Msg).SetQuestion(c.name, dns.TypeA)) }
		before := outside.udp.Load()
		first := ask()
		if c.kept > 0 {
			now = now.Add(c.kept - time.Second)
			again := ask()
			if again.Rcode != first.Rcode || len(again.Answer) != len(first.Answer) {
				t.Errorf("%s: then %v, at first %v", c.name, again, first)
			}
			for i, rr := range again.Answer {
				if want := first.Answer[i].Header().Ttl - uint32(c.kept/time.Second) + 1; rr.Header().Ttl != want {
					t.Errorf("%s: to live %d s, want %d", c.name, rr.Header().Ttl, want)
				}
			}
			if n := outside.udp.Load() - before; n != 1 {
				t.Errorf("%s: asked %d times within %s", c.name, n, c.kept)
			}
			now = now.Add(time.Second)
		}
		ask()
		if n := outside.udp.Load() - before; n != 2 {
			t.Errorf("%s: asked %d times, after %s, want 2", c.name, n, c.kept)
		}
	}
	if got := r.Stats().Cached; got != 7 {
		t.Errorf("%d answers from the cache, want 7", got)
	}
	// Another type and the DO bit are other questions; the spelling is none.
	before := outside.udp.Load()
	resolve(t, r, "www.example.com")
	resolve(t, r, "WWW.example.COM")
	exchange(t, r, new(dns.Msg).SetQuestion("www.example.com.", dns.TypeTXT))
	exchange(t, r, new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA).SetEdns0(1232, true))
	if n := outside.udp.Load() - before; n != 3 {
		t.Errorf("asked %d times, want 3", n)
	}
}

// Who asks for no recursion gets what a resolver has at hand, and nobody else does.
func TestCacheOfNoRecursion(t *testing.T) {
	outside := serveDNS(t, func(w dns.ResponseWriter, q *dns.Msg) {
		if q.RecursionDesired {
			w.WriteMsg(reply(q, "192.0.2.1"))
		} else {
			w.WriteMsg(reply(q, "192.0.2.99"))
		}
	})
	r := start(t, Options{Upstreams: []netip.AddrPort{outside.addr}})
	q := new(dns.Msg).SetQuestion("example.com.", dns.TypeA)
	q.RecursionDesired = false
	exchange(t, r, q)
	if _, got := resolve(t, r, "example.com"); !cmp.Equal(got, []string{"192.0.2.1"}) {
		t.Errorf("got %v", got)
	}
}

func TestCacheIsBounded(t *testing.T) {
	var c cache
	now := time.Unix(1_800_000_000, 0)
	for i := range 40_000 {
		q := new(dns.Msg).SetQuestion(fmt.Sprintf("n%d.example.com.", i), dns.TypeA)
		c.put(q, reply(q, "192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "192.0.2.6", "192.0.2.7", "192.0.2.8"), now)
		if c.size > maxCached {
			t.Fatalf("%d bytes after %d answers", c.size, i+1)
		}
		if c.get(q, now) == nil {
			t.Fatal("the newest answer is not there")
		}
	}
	sum := 0
	for k, e := range c.entries {
		sum += weight(k, e)
	}
	if sum != c.size || c.size < maxCached/2 {
		t.Errorf("%d bytes, counted as %d", sum, c.size)
	}
}

// Other resolvers may know other answers: a laptop changes networks.
func TestCacheIsOfItsResolvers(t *testing.T) {
	now := time.Now()
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	write("nameserver 192.0.2.1\n")
	r := start(t, Options{ResolvConf: path, Now: func() time.Time { return now }})
	r.upstreams.list()
	q := new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA)
	r.cache.put(q, reply(q, "192.0.2.80"), now)
	if _, got := resolve(t, r, "www.example.com"); !cmp.Equal(got, []string{"192.0.2.80"}) {
		t.Errorf("cached: %v", got)
	}
	write("nameserver 192.0.2.2\noptions timeout:1\n")
	now = now.Add(2 * time.Second)
	wire, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	if answer, ask := r.immediate(query{from: container, message: wire}); ask == nil {
		t.Errorf("answered %x for the former resolver", answer)
	}
}

// No name of the outside leads into the overlay, whichever way an answer says it.
func TestRebinding(t *testing.T) {
	hdr := func(q *dns.Msg, t uint16) dns.RR_Header {
		return dns.RR_Header{Name: q.Question[0].Name, Rrtype: t, Class: dns.ClassINET, Ttl: 60}
	}
	ours := net.IPv4(10, 255, 3, 4)
	outside := serveDNS(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		switch q.Question[0].Name {
		case "a.example.com.":
			m = reply(q, "192.0.2.1", "10.255.3.4")
		case "resolver.example.com.":
			m = reply(q, "169.254.0.2")
		case "aaaa.example.com.":
			m.Answer = []dns.RR{&dns.AAAA{Hdr: hdr(q, dns.TypeAAAA), AAAA: ours.To16()}}
		case "https.example.com.":
			m.Answer = []dns.RR{&dns.HTTPS{SVCB: dns.SVCB{Hdr: hdr(q, dns.TypeHTTPS), Priority: 1, Target: ".",
				Value: []dns.SVCBKeyValue{&dns.SVCBIPv4Hint{Hint: []net.IP{ours}}}}}}
		case "extra.example.com.":
			m.Answer = []dns.RR{&dns.SRV{Hdr: hdr(q, dns.TypeSRV), Target: "x.example.com."}}
			m.Extra = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: "x.example.com.", Rrtype: dns.TypeA, Class: dns.ClassINET}, A: ours}}
		default:
			m = reply(q, "192.0.2.1")
		}
		w.WriteMsg(m)
	})
	r := start(t, Options{Upstreams: []netip.AddrPort{outside.addr}, Overlay: overlay})
	for _, c := range []struct {
		name  string
		qtype uint16
	}{{"a", dns.TypeA}, {"resolver", dns.TypeA}, {"aaaa", dns.TypeAAAA}, {"https", dns.TypeHTTPS}, {"extra", dns.TypeSRV}} {
		for range 2 { // not kept either
			q := new(dns.Msg).SetQuestion(c.name+".example.com.", c.qtype)
			q.SetEdns0(1232, false)
			m := exchange(t, r, q)
			why, _ := append(m.IsEdns0().Option, nil)[0].(*dns.EDNS0_EDE)
			if m.Rcode != dns.RcodeNameError || len(m.Answer) > 0 || why == nil || why.InfoCode != dns.ExtendedErrorCodeFiltered {
				t.Errorf("%s: %v", c.name, m)
			}
		}
	}
	if got := r.Stats().Rebinding; got != 10 {
		t.Errorf("%d counted, want 10", got)
	}
	if rcode, got := resolve(t, r, "www.example.com"); rcode != 0 || !cmp.Equal(got, []string{"192.0.2.1"}) {
		t.Errorf("an honest name: %s %v", dns.RcodeToString[rcode], got)
	}
}
