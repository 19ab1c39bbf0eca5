package overlay

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/miekg/dns"

	"tulle/overlay/control"
	"tulle/overlay/netcfg/nstest"
	"tulle/policy"
)

// TestDigEmptyForUnknown: with `dns_unknown: empty` a name that nobody has is an
// empty NOERROR, as Cloud Foundry's, and no other answer differs.
func TestDigEmptyForUnknown(t *testing.T) {
	needDig(t)
	p := newPlane(t)
	one := p.cell("one", "127.0.0.1", func(c *Config) { c.EmptyUnknown = true })
	web := one.attach("web-1", "web", control.LifelineConnection)
	for _, name := range []string{"nobody.apps.internal", "0.nobody.apps.internal"} {
		web.digSays([]string{name}, "status: NOERROR", "ANSWER: 0, AUTHORITY: 0")
	}
	web.digSays([]string{"apps.internal"}, "status: NOERROR", "ANSWER: 0, AUTHORITY: 1", "SOA")
}

// TestGarbageToTheResolver: whatever a container sends to port 53, it is counted, and
// its neighbour is answered as before.
func TestGarbageToTheResolver(t *testing.T) {
	needDig(t)
	p := newPlane(t)
	one := p.cell("one", "127.0.0.1", nil)
	bad, web := one.attach("bad-1", "bad", control.LifelineConnection), one.attach("web-1", "web", control.LifelineConnection)
	if _, err := p.store.AddRoutes(t.Context(), []policy.Route{{Name: "web.apps.internal", App: "web"}}, nil); err != nil {
		t.Fatal(err)
	}
	var c net.Conn
	if err := bad.ns.Do(func() (err error) { c, err = net.Dial("udp", "169.254.0.2:53"); return err }); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	honest, err := new(dns.Msg).SetQuestion("web.apps.internal.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	const sent = 2000
	for i := range sent {
		b := slices.Clone(honest)
		switch i % 4 {
		case 0: // noise
			b = make([]byte, random.IntN(1300)) // in one piece, in either tunnel mode
			for i := range b {
				b[i] = byte(random.Uint32())
			}
		case 1: // cut off
			b = b[:random.IntN(len(b))]
		case 2: // one byte is another
			b[random.IntN(len(b))] = byte(random.Uint32())
		case 3: // counts that promise more than there is
			b[4+random.IntN(8)] = 0xff
		}
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "what was sent is counted", func() bool {
		if _, err := c.Write([]byte{0}); err != nil { // what a busy machine lost on the way does not matter
			t.Fatal(err)
		}
		s := one.daemon.life.Load().resolver.Stats()
		return s.Queries > sent/2 && s.Malformed > sent/4
	})
	eventually(t, "the neighbour is answered", func() bool { return slices.Equal(web.short("web.apps.internal"), []string{web.addr().String()}) })
}

// outsider is a resolver of the host's at the port that resolv.conf means, which
// gives every name one address.
func outsider(t *testing.T, answer string) (at netip.Addr) {
	t.Helper()
	var conn net.PacketConn
	for range 100 {
		at = netip.AddrFrom4([4]byte{127, byte(1 + rand.IntN(250)), byte(rand.IntN(250)), byte(1 + rand.IntN(250))})
		var err error
		if conn, err = net.ListenPacket("udp4", netip.AddrPortFrom(at, 53).String()); err == nil {
			break
		}
		t.Log(err)
	}
	if conn == nil {
		nstest.Skip(t, "needs port 53 of some loopback address: root, and no resolver here that has that of all")
	}
	s := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		a := new(dns.Msg).SetReply(q)
		a.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 3600}, A: net.ParseIP(answer)}}
		_ = w.WriteMsg(a)
	})}
	ended := make(chan error, 1)
	go func() { ended <- s.ActivateAndServe() }()
	t.Cleanup(func() {
		_ = conn.Close()
		<-ended
	})
	return at
}

// TestDigOutside: names of the outside go to the resolvers of resolv.conf, to those
// it names now; what was kept of former ones is forgotten; and none of them leads
// into the overlay.
func TestDigOutside(t *testing.T) {
	needDig(t)
	p := newPlane(t)
	path := filepath.Join(t.TempDir(), "resolv.conf")
	use := func(resolver netip.Addr) {
		t.Helper()
		if err := os.WriteFile(path+".new", fmt.Appendf(nil, "# written anew\nnameserver %s\n", resolver), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	home, cafe, evil := outsider(t, "192.0.2.1"), outsider(t, "192.0.2.2"), outsider(t, network.Addr().Next().Next().String())
	use(home)
	one := p.cell("one", "127.0.0.1", func(c *Config) { c.Resolvers, c.ResolvConf = nil, path })
	web := one.attach("web-1", "web", control.LifelineConnection)
	is := func(what, name, want string) {
		t.Helper()
		eventually(t, what, func() bool { return slices.Equal(web.short(name), []string{want}) })
	}
	is("at home", "www.example.com", "192.0.2.1")
	use(cafe)
	is("in a cafe, what was kept for an hour too", "www.example.com", "192.0.2.2")
	use(evil)
	eventually(t, "the third resolver is asked", func() bool { return len(web.short("bank.example.com")) == 0 })
	web.digSays([]string{"bank.example.com"}, "status: NXDOMAIN", "ANSWER: 0", "EDE: 17 (Filtered): (a name of the outside led to ")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	eventually(t, "without a resolver it says so", func() bool { return len(web.short("other.example.com")) == 0 })
	web.digSays([]string{"other.example.com"}, "status: SERVFAIL", "EDE: 23 (Network Error): (no resolver to ask)")
	use(home)
	is("at home again", "www.example.com", "192.0.2.1")
}
