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
	DefaultMaxConnections   = 4096
)

// Options say what to carry and how much of it. The zero value of each but
// Certificate means its default.
type Options struct {
	// Certificate is asked in each handshake; any goroutine.
	Certificate func() *tls.Certificate

	Backend          string        // the app's host:port
	HandshakeTimeout time.Duration // from accept to the end of the handshake, the dial in it included
	DialTimeout      time.Duration // to reach the backend
	IdleTimeout      time.Duration // without a byte in either direction; judged in quarters
	MaxConnections   int           // open at once; one more is reset at once

	// Tick, for tests, replaces the clock of IdleTimeout: four ticks are one.
	Tick <-chan time.Time

	Log *slog.Logger
}

// Proxy serves one listener.
type Proxy struct {
	o       Options
	config  *tls.Config
	metrics counters
	buffers sync.Pool // of *[bufferLen]byte

	ctx  context.Context // ends dials and pauses; ended when connections are cut
	stop context.CancelFunc

	mu      sync.Mutex
	serving net.Listener       // guarded by mu
	conns   map[*conn]struct{} // guarded by mu
	closing bool               // guarded by mu
	drained chan struct{}      // closed when closing is set and conns is empty
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
	o.Backend = cmp.Or(o.Backend, DefaultBackend)
	o.HandshakeTimeout = cmp.Or(o.HandshakeTimeout, DefaultHandshakeTimeout)
	o.DialTimeout = cmp.Or(o.DialTimeout, DefaultDialTimeout)
	o.IdleTimeout = cmp.Or(o.IdleTimeout, DefaultIdleTimeout)
	o.MaxConnections = cmp.Or(o.MaxConnections, DefaultMaxConnections)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	p := &Proxy{o: o, conns: make(map[*conn]struct{}), drained: make(chan struct{})}
	p.metrics.handshakes = newHandshakes()
	p.ctx, p.stop = context.WithCancel(context.Background())
	p.buffers.New = func() any { return new([bufferLen]byte) }
	p.config = &tls.Config{
		MinVersion:   tls.VersionTLS12,
		MaxVersion:   tls.VersionTLS13,
		CipherSuites: suites(),
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return o.Certificate(), nil
		},
		GetConfigForClient: p.reachBackend,
	}
	return p
}

// ErrShutdown is what Serve returns after Shutdown.
var ErrShutdown = errors.New("the proxy is shut down")

// acceptPause is how long an accept that found no descriptor left waits for one.
const acceptPause = 50 * time.Millisecond

// Serve accepts connections on l until Shutdown, which closes l, or until l
// fails for good. It is called once.
func (p *Proxy) Serve(l net.Listener) error {
	if !p.begin(l) {
		l.Close()
		return ErrShutdown
	}
	go p.endIdle()
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
			p.admit(c)
		case p.ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return ErrShutdown
		case errors.Is(err, syscall.ECONNABORTED): // the client's business
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE),
			errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.ENOMEM):
			p.o.Log.Warn("connection not accepted", "error", err)
			select {
			case <-p.ctx.Done():
			case <-time.After(acceptPause):
			}
		default:
			return fmt.Errorf("accept on %v: %w", l.Addr(), err)
		}
	}
}

func (p *Proxy) begin(l net.Listener) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.serving = l
	return !p.closing
}

// admit starts a connection, or resets it if there are too many.
func (p *Proxy) admit(raw net.Conn) {
	p.metrics.accepted.Add(1)
	c := &conn{Conn: raw}
	p.mu.Lock()
	full := p.closing || len(p.conns) >= p.o.MaxConnections
	if !full {
		p.conns[c] = struct{}{}
	}
	p.mu.Unlock()
	if full {
		p.metrics.ended(overLimit)
		reset(raw)
		return
	}
	go func() {
		defer p.leave(c)
		p.metrics.ended(p.carry(c))
	}()
}

func (p *Proxy) leave(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
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

// Shutdown stops accepting and waits for the connections that are there to end
// by themselves. When ctx ends first, it resets the rest, waits for that, and
// returns how many they were beside ctx's error. It is idempotent.
func (p *Proxy) Shutdown(ctx context.Context) (cut int, err error) {
	p.mu.Lock()
	p.closing = true
	if p.serving != nil {
		p.serving.Close()
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
