package tlsproxy

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"
)

// Defaults of Options.
const (
	DefaultBackend          = "127.0.0.1:8080"
	DefaultHandshakeTimeout = 10 * time.Second
	DefaultDialTimeout      = 5 * time.Second
	DefaultIdleTimeout      = time.Hour
	DefaultHeadTimeout      = 30 * time.Second
	DefaultMaxConnections   = 4096
)

// Options say how much is carried. The zero value of each means its default.
type Options struct {
	HandshakeTimeout time.Duration // from accept to the end of the handshake, the dial in it included
	DialTimeout      time.Duration // to reach the backend
	IdleTimeout      time.Duration // without a byte in either direction; judged in quarters
	HeadTimeout      time.Duration // of an HTTP request's header, from its first byte on
	MaxConnections   int           // open at once; one more is reset at once
	MaxPerSite       int           // of one site; MaxConnections

	// Tick, for tests, replaces the clock of IdleTimeout: four ticks are one.
	Tick <-chan time.Time

	Log *slog.Logger
}

// Proxy serves sites.
type Proxy struct {
	o       Options
	metrics counters
	smalls  sync.Pool // of *[smallLen]byte
	buffers sync.Pool // of *[bufferLen]byte
	outs    sync.Pool // of *[]byte, of outLen at least
	logs    logLimit
	idle    sync.Once // of endIdle, which ends with ctx

	crew *crew // runs connections

	ctx  context.Context // ends dials and pauses; ended when connections are cut
	stop context.CancelFunc

	mu      sync.Mutex
	serving map[*Site]net.Listener // guarded by mu
	conns   map[*conn]struct{}     // guarded by mu
	open    map[*Site]int          // guarded by mu: conns of each
	closing bool                   // guarded by mu
	drained chan struct{}          // closed when closing is set and conns is empty
}

// suites are the AEAD suites of TLS 1.2; those of 1.3 are all AEAD.
func suites() []uint16 {
	return []uint16{
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
		tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	}
}

// New makes a proxy; nothing runs before Serve.
func New(o Options) *Proxy {
	o.HandshakeTimeout = cmp.Or(o.HandshakeTimeout, DefaultHandshakeTimeout)
	o.DialTimeout = cmp.Or(o.DialTimeout, DefaultDialTimeout)
	o.IdleTimeout = cmp.Or(o.IdleTimeout, DefaultIdleTimeout)
	o.HeadTimeout = cmp.Or(o.HeadTimeout, DefaultHeadTimeout)
	o.MaxConnections = cmp.Or(o.MaxConnections, DefaultMaxConnections)
	o.MaxPerSite = cmp.Or(o.MaxPerSite, o.MaxConnections)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	p := &Proxy{o: o, conns: make(map[*conn]struct{}), serving: make(map[*Site]net.Listener), open: make(map[*Site]int), drained: make(chan struct{})}
	p.metrics.handshakes = newHandshakes()
	p.ctx, p.stop = context.WithCancel(context.Background())
	p.crew = newCrew(p.ctx)
	p.smalls.New = func() any { return new([smallLen]byte) }
	p.buffers.New = func() any { return new([bufferLen]byte) }
	p.outs.New = func() any { b := make([]byte, 0, outLen); return &b }
	return p
}

// ErrShutdown is what Serve returns after Shutdown.
var ErrShutdown = errors.New("the proxy is shut down")

// acceptPause is how long an accept that found no descriptor left waits for one.
const acceptPause = 50 * time.Millisecond

// Serve accepts a site's connections on l until Shutdown or Remove, which close
// l, or until l fails for good; then it may be called again with another listener.
func (p *Proxy) Serve(l net.Listener, s *Site) error {
	if s.config == nil {
		s.config = p.tlsConfig(s)
	}
	if !p.begin(l, s) {
		l.Close()
		return ErrShutdown
	}
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
			p.admit(c, s)
		case p.ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return ErrShutdown
		case errors.Is(err, syscall.ECONNABORTED): // the client's business
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE),
			errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.ENOMEM):
			p.o.Log.Warn("connection not accepted", "site", s.Name, "error", err)
			select {
			case <-p.ctx.Done():
			case <-time.After(acceptPause):
			}
		default:
			return fmt.Errorf("accept on %v: %w", l.Addr(), err)
		}
	}
}

func (p *Proxy) begin(l net.Listener, s *Site) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closing {
		return false
	}
	p.serving[s] = l
	p.idle.Do(func() { go p.endIdle() })
	return true
}

// Remove ends a site whose container is gone: its listener, and what is left of
// its connections.
func (p *Proxy) Remove(s *Site) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.serving[s]; l != nil {
		l.Close()
		delete(p.serving, s)
	}
	for c := range p.conns {
		if c.site == s {
			c.end(siteGone)
		}
	}
}

// Close ends a site's listener; its connections stay.
func (p *Proxy) Close(s *Site) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.serving[s]; l != nil {
		l.Close()
		delete(p.serving, s)
	}
}

// admit starts a connection, or resets it if there are too many.
func (p *Proxy) admit(raw net.Conn, s *Site) {
	p.metrics.accepted.Add(1)
	c := &conn{Conn: raw, site: s, outs: &p.outs}
	p.mu.Lock()
	full := p.closing || len(p.conns) >= p.o.MaxConnections || p.open[s] >= p.o.MaxPerSite
	if !full {
		p.conns[c] = struct{}{}
		p.open[s]++
	}
	p.mu.Unlock()
	if full {
		p.ended(c, overLimit, errors.New("too many connections"))
		reset(raw)
		return
	}
	p.crew.run(func() {
		defer p.leave(c)
		p.carry(c)
	})
}

func (p *Proxy) leave(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
	if p.open[c.site]--; p.open[c.site] == 0 {
		delete(p.open, c.site)
	}
	p.drainedLocked()
}

// drainedLocked tells Shutdown that it need not wait any longer.
func (p *Proxy) drainedLocked() {
	if !p.closing || len(p.conns) > 0 {
		return
	}
	select {
	case <-p.drained:
	default:
		close(p.drained)
	}
}

// Open is the number of connections now.
func (p *Proxy) Open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns)
}

// Sites is the number of sites that are served now.
func (p *Proxy) Sites() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.serving)
}

// Shutdown stops accepting and waits for the connections that are there to end
// by themselves. When ctx ends first, it resets the rest, waits for that, and
// returns how many they were beside ctx's error. It is idempotent.
func (p *Proxy) Shutdown(ctx context.Context) (cut int, err error) {
	p.mu.Lock()
	p.closing = true
	for _, l := range p.serving {
		l.Close()
	}
	p.drainedLocked()
	p.mu.Unlock()
	defer p.stop()
	select {
	case <-p.drained:
		return 0, nil
	case <-ctx.Done():
	}
	p.stop()
	p.mu.Lock()
	for c := range p.conns {
		c.end(drainedLate)
		cut++
	}
	p.mu.Unlock()
	<-p.drained
	return cut, ctx.Err()
}

// endIdle resets connections that moved nothing for IdleTimeout. It looks in
// quarters, so silence lasts up to five of them.
func (p *Proxy) endIdle() {
	tick := p.o.Tick
	if tick == nil {
		t := time.NewTicker(max(p.o.IdleTimeout/4, time.Millisecond))
		defer t.Stop()
		tick = t.C
	}
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-tick:
		}
		p.mu.Lock()
		for c := range p.conns {
			if c.silent() >= 4 {
				c.end(idle)
			}
		}
		p.mu.Unlock()
	}
}
