package cell

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"tulle/overlay/control"
	"tulle/overlay/mint"
	"tulle/tlsproxy"
)

// pair is a certificate as handshakes use it.
type pair struct {
	cert     *tls.Certificate
	trust    *x509.CertPool
	notAfter time.Time
	renew    time.Time
}

// container is one that is served.
type container struct {
	f       *Fleet
	of      control.TLSContainer
	mint    *mint.Mint
	site    *tlsproxy.Site
	version uint64 // of the daemon's list; Run's goroutine alone uses it

	quiet  atomic.Bool   // nobody listens
	listen chan struct{} // capacity 1: listen again

	pair atomic.Pointer[pair]
	ctx  context.Context // ends with the container
	end  context.CancelFunc

	mu     sync.Mutex    // guards asking and again
	asking chan struct{} // closed when the asking under way is over; nil: none is
	again  bool          // there is another than what may be asked for right now
}

func newContainer(f *Fleet, of control.TLSContainer, m *mint.Mint, version uint64) *container {
	c := &container{f: f, of: of, mint: m, version: version, listen: make(chan struct{}, 1)}
	c.ctx, c.end = context.WithCancel(context.Background())
	if c.of.Backend == 0 {
		c.of.Backend = control.DefaultTLSBackend
	}
	c.site = &tlsproxy.Site{Name: of.Container, Certificate: c.certificate, Dial: c.reach, Caller: c.caller, Identity: tlsproxy.Identity(of.Identity)}
	if of.ClientCertificate {
		c.site.Clients = c.clients
	}
	return c
}

// is reports whether a container is still the one that is served.
func (c *container) is(of control.TLSContainer, s *mint.Sockets) bool {
	if of.Backend == 0 {
		of.Backend = control.DefaultTLSBackend
	}
	of.App = c.of.App // may have become known since
	return of == c.of && c.mint.Sockets().Same(s)
}

func (c *container) close() {
	c.end()
	_ = c.mint.Close()
}

// serve accepts until the container or the proxy ends. The daemon stops the port
// listening when it sees no proxy for a while, and when the container ends: which of
// the two it was, its next list says.
func (c *container) serve(ctx context.Context, l net.Listener) {
	for {
		err := c.f.o.Proxy.Serve(l, c.site)
		if errors.Is(err, tlsproxy.ErrShutdown) {
			return
		}
		_ = l.Close()
		for {
			c.f.o.Log.Info("a container's port does not listen any more", "container", c.of.Container, "error", err)
			c.quiet.Store(true)
			select {
			case <-c.listen:
			case <-c.ctx.Done():
				return
			case <-ctx.Done():
				return
			}
			c.quiet.Store(false)
			if l, err = c.mint.Listen(); err == nil {
				c.f.o.Log.Info("terminating TLS again", "container", c.of.Container)
				break
			}
		}
	}
}

// listenAgain is called while the daemon lists the container.
func (c *container) listenAgain() {
	if !c.quiet.Load() {
		return
	}
	select {
	case c.listen <- struct{}{}:
	default:
	}
}

// reach connects to the app on the container's own loopback, or on its own
// address where nothing listens there.
func (c *container) reach(ctx context.Context) (net.Conn, error) {
	conn, err := c.mint.Dial(ctx, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), c.of.Backend))
	if errors.Is(err, unix.ECONNREFUSED) {
		conn, err = c.mint.Dial(ctx, netip.AddrPortFrom(c.of.Address, c.of.Backend))
	}
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// caller asks the daemon who opened a connection. While the daemon is away there
// is no answer, and the handshake's time runs.
func (c *container) caller(ctx context.Context, peer netip.AddrPort) (tlsproxy.Caller, error) {
	got, err := ask(ctx, c.f.asks, func(client *control.Client) (control.Caller, error) {
		return client.TLSCaller(ctx, control.TLSCaller{Container: c.of.Container, Peer: peer})
	})
	return tlsproxy.Caller{App: string(got.App), Space: got.SpaceGUID, Org: got.OrgGUID}, err
}

func (c *container) clients() *x509.CertPool {
	if p := c.pair.Load(); p != nil {
		return p.trust
	}
	return x509.NewCertPool() // nobody's
}

// certificate is the one in use. One that this host's clock has expired is asked
// for anew first; whatever comes of that is then used, since the clock may be
// what is wrong.
func (c *container) certificate(ctx context.Context) (*tls.Certificate, error) {
	p := c.pair.Load()
	now := time.Now()
	switch {
	case p == nil || now.After(p.notAfter):
		select {
		case <-c.refresh(p != nil):
		case <-ctx.Done():
		}
	case now.After(p.renew):
		c.refresh(false)
	}
	if p = c.pair.Load(); p == nil {
		return nil, errors.New("the cell has no certificate for the container yet")
	}
	return p.cert, nil
}

// renew fetches the certificate again in the background: there is another. The answer
// that is waited for right now may be the one before.
func (c *container) renew(context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.again = c.asking != nil
	c.refreshLocked(false)
}

// refresh asks the daemon, once at a time; the channel is closed when it has.
func (c *container) refresh(fresh bool) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.refreshLocked(fresh)
}

func (c *container) refreshLocked(fresh bool) <-chan struct{} {
	if c.asking != nil {
		return c.asking
	}
	done := make(chan struct{})
	c.asking = done
	go func() { // it ends with the container
		defer close(done)
		err := c.fetch(fresh)
		c.mu.Lock()
		c.asking = nil
		if c.again && c.ctx.Err() == nil {
			c.again = false
			c.refreshLocked(false)
		}
		c.mu.Unlock()
		if err == nil {
			c.f.asks.taken.Add(1)
		} else if c.ctx.Err() == nil {
			c.f.asks.refused.Add(1)
			c.f.o.Log.Warn("certificate not to be had, the one before stays in use", "container", c.of.Container, "error", err, "has_one", c.pair.Load() != nil)
		}
	}()
	return done
}

// fetchWithin bounds one asking; the daemon itself answers within 8 s.
const fetchWithin = 15 * time.Second

func (c *container) fetch(fresh bool) error {
	ctx, cancel := context.WithTimeout(c.ctx, fetchWithin)
	defer cancel()
	got, err := ask(ctx, c.f.asks, func(client *control.Client) (control.TLSPair, error) {
		return client.TLSCertificate(ctx, control.TLSCertificate{Container: c.of.Container, Fresh: fresh})
	})
	if err != nil {
		return err
	}
	cert, err := tls.X509KeyPair([]byte(got.Certificate), []byte(got.Key))
	if err != nil {
		return fmt.Errorf("certificate of the cell: %w", err)
	}
	p := &pair{cert: &cert, trust: x509.NewCertPool(), notAfter: got.NotAfter, renew: got.Renew.Add(time.Minute)}
	p.trust.AppendCertsFromPEM([]byte(got.Trust))
	c.pair.Store(p)
	return nil
}
