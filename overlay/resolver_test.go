package overlay

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tulle/overlay/control"
	"tulle/overlay/fib"
	"tulle/policy"
)

// nameserver answers every A query with 192.0.2.80 and remembers what it was
// asked.
func nameserver(t *testing.T) (at netip.AddrPort, asked func() []string) {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var names []string
	s := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		mu.Lock()
		names = append(names, q.Question[0].Name)
		mu.Unlock()
		a := new(dns.Msg).SetReply(q)
		a.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: net.IPv4(192, 0, 2, 80)}}
		_ = w.WriteMsg(a)
	})}
	ended := make(chan error, 1)
	go func() { ended <- s.ActivateAndServe() }()
	t.Cleanup(func() {
		_ = conn.Close()
		<-ended
	})
	return conn.LocalAddr().(*net.UDPAddr).AddrPort(), func() []string {
		mu.Lock()
		defer mu.Unlock()
		return append([]string(nil), names...)
	}
}

// What a container asks of 169.254.0.2 is answered from the routes and the live
// containers of both cells where it is internal, and else by the host's resolvers.
func TestContainerResolves(t *testing.T) {
	p := newPlane(t)
	upstream, asked := nameserver(t)
	quiet := func(c *Config) { c.Resolvers = []netip.AddrPort{upstream} }
	one, two := p.cell("one", "127.0.0.1", quiet), p.cell("two", "127.0.0.2", quiet)
	web := one.attach("web-1", "web", control.LifelineConnection)
	far := two.attach("back-1", "back", control.LifelineConnection)
	near := one.attach("back-2", "back", control.LifelineConnection)
	// The sockets are the container's; the goroutines that use them need not be.
	queryAt := func(at, name string, qtype uint16) *dns.Msg {
		t.Helper()
		var c net.Conn
		err := web.ns.Do(func() (err error) { c, err = net.Dial("udp", at); return err })
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		co := &dns.Conn{Conn: c}
		_ = co.SetDeadline(time.Now().Add(patience))
		q := new(dns.Msg).SetQuestion(name, qtype)
		q.SetEdns0(1232, false)
		if err := co.WriteMsg(q); err != nil {
			t.Fatal(err)
		}
		a, err := co.ReadMsg()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if a.Id != q.Id {
			t.Errorf("%s: the answer is to another question", name)
		}
		return a
	}
	query := func(name string) *dns.Msg { t.Helper(); return queryAt("169.254.0.2:53", name, dns.TypeA) }
	// until asks until the answer is the containers'. Every change is on its way.
	until := func(what, name string, want ...*app) time.Duration {
		t.Helper()
		var addrs []string
		for _, c := range want {
			addrs = append(addrs, c.addr().String())
		}
		slices.Sort(addrs)
		for begun := time.Now(); ; time.Sleep(5 * time.Millisecond) {
			var got []string
			for _, rr := range query(name).Answer {
				got = append(got, rr.(*dns.A).A.String())
			}
			slices.Sort(got)
			if slices.Equal(got, addrs) {
				return time.Since(begun)
			}
			if time.Since(begun) > patience {
				t.Fatalf("%s: %s is %v, want %v", what, name, got, addrs)
			}
		}
	}
	if a := query("www.example.com."); a.Rcode != dns.RcodeSuccess || len(a.Answer) != 1 || a.Answer[0].(*dns.A).A.String() != "192.0.2.80" {
		t.Errorf("got %v", a)
	}
	if a := query("backend.apps.internal."); a.Rcode != dns.RcodeNameError || !a.Authoritative {
		t.Errorf("got %v, want NXDOMAIN", a)
	}
	route := []policy.Route{{Name: "backend.apps.internal", App: "back"}}
	if _, err := p.store.AddRoutes(t.Context(), route, nil); err != nil {
		t.Fatal(err)
	}
	until("mapped", "backend.apps.internal.", far, near)
	if a := query("backend.apps.internal."); ede(a) == "" {
		t.Errorf("without a policy: %v", a)
	}
	if a := queryAt("[fd00:169:254::2]:53", "backend.apps.internal.", dns.TypeAAAA); len(a.Answer) != 2 ||
		fib.Name(netip.AddrFrom16([16]byte(a.Answer[0].(*dns.AAAA).AAAA))) != near.addr() && fib.Name(netip.AddrFrom16([16]byte(a.Answer[0].(*dns.AAAA).AAAA))) != far.addr() {
		t.Errorf("over IPv6: %v", a)
	}
	p.allow(tcp("web", "back", 8080))
	for begun := time.Now(); ede(query("backend.apps.internal.")) != ""; time.Sleep(5 * time.Millisecond) {
		if time.Since(begun) > patience {
			t.Fatal("with a policy it is still prohibited")
		}
	}
	// An end that no detach announced, on another cell and on this one.
	_ = near.conn.Close()
	until("a container of this cell is dead", "backend.apps.internal.", far)
	_ = far.conn.Close()
	took := until("the other cell's is dead", "backend.apps.internal.")
	t.Logf("out of the answers of the other cell after %s", took)
	if _, err := p.store.RemoveRoutes(t.Context(), route); err != nil {
		t.Fatal(err)
	}
	for begun := time.Now(); query("backend.apps.internal.").Rcode != dns.RcodeNameError; time.Sleep(5 * time.Millisecond) {
		if time.Since(begun) > patience {
			t.Fatal("unmapped, the name is still there")
		}
	}
	if got := asked(); len(got) != 1 || got[0] != "www.example.com." {
		t.Errorf("the host's resolver was asked %q", got)
	}
}

// ede is the text of the extended error that says which policy is missing.
func ede(m *dns.Msg) string {
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if e, ok := o.(*dns.EDNS0_EDE); ok && e.InfoCode == dns.ExtendedErrorCodeProhibited {
				return e.ExtraText
			}
		}
	}
	return ""
}
