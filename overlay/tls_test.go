package overlay

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tulle/overlay/control"
	"tulle/overlay/mint"
	"tulle/policy"
	"tulle/policy/api"
)

// secured attaches a container whose TLS is to be terminated.
func (c *cell) secured(id string, of policy.AppID, l control.Lifeline, change ...func(*control.TLS)) (*app, *mint.Sockets) {
	c.Helper()
	a := &app{cell: c, id: id, conn: c.client()}
	a.ns, a.tun = newTUN(c.T)
	var s *mint.Sockets
	if err := a.ns.Do(func() (err error) { s, err = mint.Create(control.TLSPort); return err }); err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() { _ = s.Close() })
	r := c.request(id, of, l)
	r.TLS = &control.TLS{Backend: 80}
	for _, f := range change {
		f(r.TLS)
	}
	var err error
	if a.at, err = a.conn.Attach(c.Context(), r, a.tun, nil, s.Files()...); err != nil {
		c.Fatalf("attach %s: %v", id, err)
	}
	a.configure()
	return a, s
}

// proxied takes a container's sockets as the proxy does, and listens.
func (c *cell) proxied(id string) (control.TLSContainer, net.Listener) {
	c.Helper()
	got, s, err := c.client().TLSSockets(c.Context(), control.TLSSockets{Container: id})
	if err != nil {
		c.Fatal(err)
	}
	m, err := mint.New(s)
	if err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() { _ = m.Close() })
	l, err := m.Listen()
	if err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() { _ = l.Close() })
	return got, l
}

// Sockets that cannot be duplicated, since no descriptor is free, leave the container
// those that it had.
func TestTLSSocketsThatCannotBeTaken(t *testing.T) {
	a := newPlane(t).cell("a", "127.0.0.1", nil)
	_, s := a.secured("db-0", "db", control.LifelineConnection)
	bad, err := s.Duplicate()
	if err == nil {
		err = bad.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	e, _ := a.daemon.ledger.Get("db-0")
	if err := a.daemon.life.Load().terminals.put(e, bad); err == nil {
		t.Fatal("closed sockets were taken")
	}
	a.proxied("db-0")
}

// The proxy gets a container's sockets, a certificate that verifies by what the
// attach said is to be trusted, and who it is that called.
func TestTLSOfAContainer(t *testing.T) {
	p := newPlane(t)
	a := p.cell("a", "127.0.0.1", nil)
	b := p.cell("b", "127.0.0.2", nil)
	p.allow(tcp("web", "db", control.TLSPort))
	db, _ := b.secured("db-0", "db", control.LifelineConnection)
	web := a.attach("web-0", "web", control.LifelineConnection)
	near := b.attach("web-1", "web", control.LifelineConnection)
	stranger := b.attach("x-0", "x", control.LifelineConnection)

	list, err := b.client().TLSList(t.Context(), control.TLSList{})
	if err != nil || len(list.Containers) != 1 || list.Containers["db-0"] == 0 {
		t.Fatalf("list %+v, %v", list, err)
	}
	got, l := b.proxied("db-0")
	if got.Backend != 80 || got.Address != db.addr() || got.App != "db" {
		t.Errorf("container %+v", got)
	}
	pair, err := b.client().TLSCertificate(t.Context(), control.TLSCertificate{Container: "db-0"})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair([]byte(pair.Certificate), []byte(pair.Key))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(db.at.Trust)) || db.at.Trust != pair.Trust {
		t.Errorf("trust of the attach %q, of the certificate %q", db.at.Trust, pair.Trust)
	}
	if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "db-0"}); err != nil {
		t.Error(err)
	}
	if err := cert.Leaf.VerifyHostname(db.addr().String()); err != nil {
		t.Error(err)
	}
	if bundle, err := os.ReadFile(b.daemon.cfg.TrustBundle); err != nil || !strings.HasSuffix(string(bundle), pair.Trust) {
		t.Errorf("bundle for other runtimes: %v", err)
	}

	for _, from := range []struct {
		*app
		container string
	}{{web, ""}, {near, "web-1"}} {
		var c net.Conn
		eventually(t, from.id+" connects", func() (ok bool) {
			c, err = from.dial(db, control.TLSPort, time.Second)
			return err == nil
		})
		defer c.Close()
		served, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		peer := served.RemoteAddr().(*net.TCPAddr).AddrPort()
		who, err := b.client().TLSCaller(t.Context(), control.TLSCaller{Container: "db-0", Peer: peer})
		if err != nil || who.App != "web" || who.Container != from.container {
			t.Errorf("%s is %+v, %v", from.id, who, err)
		}
		other := netip.AddrPortFrom(peer.Addr(), peer.Port()+1)
		if _, err := b.client().TLSCaller(t.Context(), control.TLSCaller{Container: "db-0", Peer: other}); codeOf(err) != control.CodeNotFound {
			t.Errorf("another port of %s: %v", from.id, err)
		}
		// A connection that is over is nobody's.
		c.Close()
		served.Close()
		eventually(t, "the flow is over", func() bool {
			_, err := b.client().TLSCaller(t.Context(), control.TLSCaller{Container: "db-0", Peer: peer})
			return codeOf(err) == control.CodeNotFound
		})
	}
	stranger.refused(db, control.TLSPort)
	// The same over IPv6: one listener, one policy, one name.
	if err := cert.Leaf.VerifyHostname(db.at.Address6.Addr().String()); err != nil {
		t.Error(err)
	}
	for _, from := range []*app{web, near} {
		var c net.Conn
		eventually(t, from.id+" connects over IPv6", func() (ok bool) {
			c, err = from.dial6(db, control.TLSPort)
			return err == nil
		})
		defer c.Close()
		served, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer served.Close()
		peer := served.RemoteAddr().(*net.TCPAddr).AddrPort()
		if who, err := b.client().TLSCaller(t.Context(), control.TLSCaller{Container: "db-0", Peer: peer}); err != nil || who.App != "web" || !peer.Addr().Is6() || peer.Addr() != from.at.Address6.Addr() {
			t.Errorf("%s from %s is %+v, %v", from.id, peer, who, err)
		}
		other := netip.AddrPortFrom(peer.Addr(), peer.Port()^1)
		if _, err := b.client().TLSCaller(t.Context(), control.TLSCaller{Container: "db-0", Peer: other}); codeOf(err) != control.CodeNotFound {
			t.Errorf("another port of %s: %v", from.id, err)
		}
	}
	if c, err := stranger.dial6(db, control.TLSPort); !errors.Is(err, unix.ECONNREFUSED) {
		if err == nil {
			c.Close()
		}
		t.Errorf("a stranger over IPv6: %v", err)
	}

	// A name that the app gets is in its certificate at once, one that it loses is not.
	route := []policy.Route{{Name: "db.apps.internal", App: "db"}}
	for _, step := range []struct {
		do    func() (api.Revision, error)
		named bool
	}{{func() (api.Revision, error) { return p.store.AddRoutes(t.Context(), route, nil) }, true},
		{func() (api.Revision, error) { return p.store.RemoveRoutes(t.Context(), route) }, false}} {
		if _, err := step.do(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the certificate with other names", func() bool {
			pair, err := b.client().TLSCertificate(t.Context(), control.TLSCertificate{Container: "db-0"})
			if err != nil {
				t.Fatal(err)
			}
			block, _ := pem.Decode([]byte(pair.Certificate))
			cert, err := x509.ParseCertificate(block.Bytes)
			return err == nil && slices.Contains(cert.DNSNames, "db.apps.internal") == step.named
		})
	}
	if list, err = b.client().TLSList(t.Context(), control.TLSList{}); err != nil {
		t.Fatal(err)
	}
	// The list waits for a change, and what ended is not in it.
	changed := make(chan control.TLSContainers, 1)
	go func() {
		next, err := b.client().TLSList(t.Context(), control.TLSList{Version: list.Version})
		if err != nil {
			t.Error(err)
		}
		changed <- next
	}()
	_ = db.conn.Close()
	if next := <-changed; len(next.Containers) != 0 {
		t.Errorf("after the detach: %+v", next)
	}
	eventually(t, "the key of a container that is gone is gone", func() bool {
		_, err := b.client().TLSCertificate(t.Context(), control.TLSCertificate{Container: "db-0"})
		return codeOf(err) == control.CodeNotFound
	})
}

// An app that is told who calls in a header is told the caller's space and org too,
// as far as the policy server says them.
func TestCallerInAHeaderHasSpaceAndOrg(t *testing.T) {
	p := newPlane(t)
	a, b := p.cell("a", "127.0.0.1", nil), p.cell("b", "127.0.0.2", nil)
	p.allow(tcp("web", "db", control.TLSPort))
	db, _ := b.secured("db-0", "db", control.LifelineConnection, func(t *control.TLS) { t.Identity = control.IdentityXFCC })
	web := a.attachWith("web-0", "web", control.LifelineConnection, func(r *control.Attach) { r.App.Name, r.App.Space, r.App.Org = "web", "prod", "acme" })
	_, l := b.proxied("db-0")
	var c net.Conn
	eventually(t, "a connection", func() (ok bool) {
		var err error
		c, err = web.dial(db, control.TLSPort, time.Second)
		return err == nil
	})
	defer c.Close()
	served, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer served.Close()
	peer := served.RemoteAddr().(*net.TCPAddr).AddrPort()
	who, err := b.client().TLSCaller(t.Context(), control.TLSCaller{Container: "db-0", Peer: peer})
	if err != nil || who.App != "web" || who.AppName != "web" || who.Space != "prod" || who.SpaceGUID == "" || who.Org != "acme" || who.OrgGUID == "" {
		t.Errorf("the caller is %+v, %v", who, err)
	}
}

// The sockets outlive the daemon in the holder, and the certificate in its
// directory; a client that connects while there is no proxy waits for the next
// one, and is refused when none comes.
func TestTLSSocketsOutliveTheDaemon(t *testing.T) {
	p := newPlane(t)
	c := p.cell("a", "127.0.0.1", func(cfg *Config) { cfg.ProxyAway = 500 * time.Millisecond })
	p.allow(tcp("web", "db", control.TLSPort))
	db, sockets := c.secured("db-0", "db", control.LifelineNone)
	web := c.attach("web-0", "web", control.LifelineNone)
	before, err := c.client().TLSCertificate(t.Context(), control.TLSCertificate{Container: "db-0"})
	if err != nil {
		t.Fatal(err)
	}
	// Only the holder has the sockets besides the daemon, and both go through a restart.
	_ = sockets.Close()
	_, l := c.proxied("db-0")
	_ = l.Close()
	c.shut()
	p.stop() // no server either
	c.run()
	after, err := c.client().TLSCertificate(t.Context(), control.TLSCertificate{Container: "db-0"})
	if err != nil || after.Certificate != before.Certificate {
		t.Errorf("after a restart without a server the certificate is another, %v", err)
	}
	p.start()
	c.untilStatus("connected", func(s control.Status) bool { return s.Connected })
	web.refusedSoon(db)
	_, l = c.proxied("db-0")
	var conn net.Conn
	eventually(t, "a connection to the next proxy", func() bool {
		conn, err = web.dial(db, control.TLSPort, time.Second)
		return err == nil
	})
	defer conn.Close()
	served, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = served.Write([]byte("hello"))
	_ = served.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if b, err := io.ReadAll(conn); err != nil || string(b) != "hello" {
		t.Errorf("the next proxy said %q, %v", b, err)
	}
}

// A container that comes back after the daemon has heard what names there are has a
// certificate with those that were mapped meanwhile.
func TestTLSNamesThatCameWhileTheDaemonWasAway(t *testing.T) {
	p := newPlane(t)
	c := p.cell("a", "127.0.0.1", nil)
	db, sockets := c.secured("db-0", "db", control.LifelineConnection)
	names := func() []string {
		t.Helper()
		pair, err := c.client().TLSCertificate(t.Context(), control.TLSCertificate{Container: "db-0"})
		if err != nil {
			t.Fatal(err)
		}
		cert, err := tls.X509KeyPair([]byte(pair.Certificate), []byte(pair.Key))
		if err != nil {
			t.Fatal(err)
		}
		return cert.Leaf.DNSNames
	}
	if got := names(); !slices.Equal(got, []string{"db-0"}) {
		t.Errorf("at first the certificate has %v", got)
	}
	c.shut()
	if _, err := p.store.AddRoutes(t.Context(), []policy.Route{{Name: "db.apps.internal", App: "db"}}, nil); err != nil {
		t.Fatal(err)
	}
	c.run()
	eventually(t, "the names", func() bool {
		n, _ := c.daemon.life.Load().names.Count()
		return n == 1
	})
	terminals := c.daemon.life.Load().terminals
	eventually(t, "the names for certificates", func() bool {
		terminals.mu.Lock()
		defer terminals.mu.Unlock()
		return len(terminals.routes) == 1
	})
	r := c.request("db-0", "db", control.LifelineConnection)
	r.TLS = &control.TLS{Backend: 80}
	r.Resume = true
	db.conn = c.client()
	if _, err := db.conn.Attach(t.Context(), r, db.tun, nil, sockets.Files()...); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the name in the certificate", func() bool { return slices.Contains(names(), "db.apps.internal") })
	if renewed, _ := c.daemon.identity.Counts(); renewed != 1 {
		t.Errorf("%d certificates since the start, want 1", renewed)
	}
}

// refusedSoon waits until the port refuses.
func (a *app) refusedSoon(b *app) {
	a.Helper()
	eventually(a.T, "the port of a proxy that is gone refuses", func() bool {
		c, err := a.dial(b, control.TLSPort, time.Second)
		if err == nil {
			_ = c.Close()
		}
		return errors.Is(err, unix.ECONNREFUSED)
	})
}

// Sockets of the daemon's own namespace would open doors of the host; another
// port is not the one that policies are about; without sockets it is said why.
func TestTLSAttachesThatAreRefusedOrOff(t *testing.T) {
	p := newPlane(t)
	c := p.cell("a", "127.0.0.1", nil)
	ns, tun := newTUN(t)
	try := func(s *mint.Sockets, err error) error {
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		r := c.request("db-0", "db", control.LifelineConnection)
		r.TLS = &control.TLS{}
		_, err = c.client().Attach(t.Context(), r, tun, nil, s.Files()...)
		return err
	}
	if err := try(mint.Create(control.TLSPort)); codeOf(err) != control.CodeBadRequest || !strings.Contains(err.Error(), "own network namespace") {
		t.Errorf("sockets of the host: %v", err)
	}
	var s *mint.Sockets
	err := ns.Do(func() (err error) { s, err = mint.Create(8443); return err })
	if err := try(s, err); codeOf(err) != control.CodeBadRequest || !strings.Contains(err.Error(), "61443") {
		t.Errorf("another port: %v", err)
	}
	r := c.request("db-0", "db", control.LifelineConnection)
	r.TLS = &control.TLS{Off: "port 61443 is in use"}
	if _, err := c.client().Attach(t.Context(), r, tun, nil); err != nil {
		t.Fatal(err)
	}
	if s := c.status(); len(s.Endpoints) != 1 || s.Endpoints[0].TLS == nil || s.Endpoints[0].TLS.Off != r.TLS.Off {
		t.Errorf("endpoints %+v", s.Endpoints)
	}
	if _, _, err := c.client().TLSSockets(t.Context(), control.TLSSockets{Container: "db-0"}); codeOf(err) != control.CodeNotFound {
		t.Errorf("sockets of a container without: %v", err)
	}
}

// An app's own TLS reaches the other app end to end, on 61443 too where nobody
// terminates it: the certificate that the client sees is the app's.
func TestOwnTLSIsUntouched(t *testing.T) {
	p := newPlane(t)
	a := p.cell("a", "127.0.0.1", nil)
	b := p.cell("b", "127.0.0.2", nil)
	own, err := p.roots.Instances.IssueInstance("db", "my own", 0)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := own.TLS()
	if err != nil {
		t.Fatal(err)
	}
	web := a.attach("web-0", "web", control.LifelineConnection)
	db := b.attach("db-0", "db", control.LifelineConnection)
	for _, port := range []uint16{8443, control.TLSPort} {
		p.allow(tcp("web", "db", port))
		var l net.Listener
		if err := db.ns.Do(func() (err error) {
			l, err = net.Listen("tcp4", netip.AddrPortFrom(db.addr(), port).String())
			return err
		}); err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
			_, _ = io.Copy(s, s)
		}()
		var raw net.Conn
		eventually(t, "a connection", func() bool {
			raw, err = web.dial(db, port, time.Second)
			return err == nil
		})
		defer raw.Close()
		c := tls.Client(raw, &tls.Config{RootCAs: p.roots.Instances.Pool(), ServerName: "my own"})
		web.echo(c)
		if got := c.ConnectionState().PeerCertificates[0]; !got.Equal(cert.Leaf) {
			t.Errorf("on port %d the certificate is of %q", port, got.Subject.CommonName)
		}
	}
}
