package dns

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tulle/policy"
)

// dial is a connection of the container to r.
func dial(t *testing.T, r *Resolver) (c net.Conn, served chan struct{}) {
	t.Helper()
	c, end := net.Pipe()
	// Before it is served, which may be for no time at all.
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	served = make(chan struct{})
	go func() { r.ServeConn(container, end); close(served) }()
	t.Cleanup(func() { c.Close(); <-served })
	return c, served
}

// Over TCP an answer comes whole, whatever its length, one after the other.
func TestOverTCP(t *testing.T) {
	outside := serveDNS(t, says("192.0.2.1"))
	n := acme()
	for i := range 250 {
		n.Apply(Change{InstancesSet: []Instance{{App: "web", Address: netip.AddrFrom4([4]byte{10, 255, 9, byte(i + 1)})}}})
	}
	r := start(t, Options{Upstreams: []netip.AddrPort{outside.addr}, Names: n})
	q := new(dns.Msg).SetQuestion("web.apps.internal.", dns.TypeA)
	if m := exchange(t, r, q); !m.Truncated || len(m.Answer) == 0 {
		t.Errorf("over UDP: truncated %v, %d answers", m.Truncated, len(m.Answer))
	}
	c, _ := dial(t, r)
	co := &dns.Conn{Conn: c}
	for _, ask := range []struct {
		name string
		want int
	}{{"web.apps.internal.", 254}, {"www.example.com.", 1}, {"no.apps.internal.", 0}, {"www.example.com.", 1}} {
		q := new(dns.Msg).SetQuestion(ask.name, dns.TypeA)
		if err := co.WriteMsg(q); err != nil {
			t.Fatal(err)
		}
		m, err := co.ReadMsg()
		if err != nil {
			t.Fatal(err)
		}
		if m.Id != q.Id || m.Truncated || len(m.Answer) != ask.want {
			t.Errorf("%s: truncated %v, %d answers, want %d", ask.name, m.Truncated, len(m.Answer), ask.want)
		}
	}
}

// A connection that says nothing honest ends, and a container has only so many.
func TestConnectionsAreBounded(t *testing.T) {
	r := start(t, Options{Upstreams: []netip.AddrPort{}, Names: NewNames(netip.Prefix{})})
	for name, b := range map[string][]byte{
		"too long":     {0xff, 0xff},
		"no id":        {0, 3, 1, 2, 3},
		"a response":   append([]byte{0, 12}, 0, 1, 0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0),
		"nothing more": nil,
	} {
		c, served := dial(t, r)
		if b == nil {
			c.Close()
		} else if _, err := c.Write(b); err != nil {
			t.Errorf("%s: %v", name, err)
		} else if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%s: %v, want the end", name, err)
		}
		<-served
	}
	for range streamsOfOne {
		dial(t, r)
	}
	for deadline := time.Now().Add(20 * time.Second); ; {
		r.streams.mu.Lock()
		open := r.streams.all
		r.streams.mu.Unlock()
		if open == streamsOfOne {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d are open", open)
		}
		time.Sleep(time.Millisecond)
	}
	c, served := dial(t, r)
	<-served
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("one more: %v, want the end", err)
	}
	if got := r.Stats(); got.OverSource != 1 || got.Malformed != 3 {
		t.Errorf("counted %+v", got)
	}
}

func TestCloseEndsConnections(t *testing.T) {
	r := New(Options{Upstreams: []netip.AddrPort{}, Names: NewNames(netip.Prefix{})})
	r.names.Apply(Change{DomainsSet: []policy.Hostname{policy.DefaultDomain}})
	c, served := dial(t, r)
	co := &dns.Conn{Conn: c}
	if err := co.WriteMsg(new(dns.Msg).SetQuestion("a.apps.internal.", dns.TypeA)); err != nil {
		t.Fatal(err)
	}
	if _, err := co.ReadMsg(); err != nil {
		t.Fatal(err)
	}
	r.Close()
	select {
	case <-served:
	case <-time.After(20 * time.Second):
		t.Error("the connection outlives the resolver")
	}
}
