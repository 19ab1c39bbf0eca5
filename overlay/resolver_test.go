package overlay

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tulle/overlay/control"
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

// What a container asks of 169.254.0.2 is answered by the host's resolvers,
// apps.internal at once and by nobody else, and TCP is refused.
func TestContainerResolves(t *testing.T) {
	p := newPlane(t)
	upstream, asked := nameserver(t)
	one := p.cell("one", "127.0.0.1", func(c *Config) { c.Resolvers = []netip.AddrPort{upstream} })
	web := one.attach("web-1", "web", control.LifelineConnection)
	// The sockets are the container's; the goroutines that use them need not be.
	query := func(name string) *dns.Msg {
		t.Helper()
		var c net.Conn
		err := web.ns.Do(func() (err error) { c, err = net.Dial("udp4", "169.254.0.2:53"); return err })
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		co := &dns.Conn{Conn: c}
		_ = co.SetDeadline(time.Now().Add(patience))
		q := new(dns.Msg).SetQuestion(name, dns.TypeA)
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
	if a := query("www.example.com."); a.Rcode != dns.RcodeSuccess || len(a.Answer) != 1 || a.Answer[0].(*dns.A).A.String() != "192.0.2.80" {
		t.Errorf("got %v", a)
	}
	begun := time.Now()
	if a := query("backend.apps.internal."); a.Rcode != dns.RcodeServerFailure {
		t.Errorf("got %v, want SERVFAIL", a)
	} else if took := time.Since(begun); took > time.Second {
		t.Errorf("SERVFAIL took %s", took)
	}
	if got := asked(); len(got) != 1 || got[0] != "www.example.com." {
		t.Errorf("the host's resolver was asked %q", got)
	}
	err := web.ns.Do(func() error {
		c, err := net.DialTimeout("tcp4", "169.254.0.2:53", patience)
		if err == nil {
			_ = c.Close()
		}
		return err
	})
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("TCP: %v, want a refusal", err)
	}
}
