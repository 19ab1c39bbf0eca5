package tlsproxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// bufferLen holds two TLS records (RFC 8446, 5.1).
const bufferLen = 32 << 10

// conn is a client's connection and, once there is one, the app's. It is the
// net.Conn under TLS, so that a handshake's callback finds it.
type conn struct {
	net.Conn

	fin   atomic.Bool   // the client's FIN came
	moved atomic.Uint64 // grows with each piece carried, in either direction
	quiet int           // ticks since seen changed; endIdle's, as is seen
	seen  uint64

	mu      sync.Mutex
	backend net.Conn // guarded by mu; set at most once, by the handshake
	why     result   // guarded by mu: why end was called, "" before
}

// Read notes the client's FIN, which crypto/tls would pass off as the end of
// the stream wherever it stands between two records.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err == io.EOF {
		c.fin.Store(true)
	}
	return n, err
}

// plain is what the client sent inside TLS; io.EOF is its close_notify and
// nothing else.
type plain struct {
	*tls.Conn
	c *conn
}

func (p plain) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	if err == io.EOF && p.c.fin.Load() {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// silent counts calls since the last piece was carried.
func (c *conn) silent() int {
	if m := c.moved.Load(); m != c.seen {
		c.seen, c.quiet = m, 0
		return 0
	}
	c.quiet++
	return c.quiet
}

// end resets both sides: whatever waits on them wakes. Only the first reason
// counts.
func (c *conn) end(why result) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.why == "" {
		c.why = why
	}
	reset(c.Conn)
	if c.backend != nil {
		reset(c.backend)
	}
}

// attach gives the connection its other side, unless it was ended meanwhile.
func (c *conn) attach(backend net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.why != "" {
		reset(backend)
		return false
	}
	c.backend = backend
	return true
}

// reset closes with RST instead of FIN: what was cut must not look complete.
func reset(c net.Conn) {
	if t, ok := c.(interface{ SetLinger(int) error }); ok {
		t.SetLinger(0)
	}
	c.Close()
}

var errBackend = errors.New("the app cannot be reached")

// reachBackend is called in the handshake, when the client's first message is
// whole: a client that says less than that costs the app nothing, and an error
// here is an internal_error alert to the client (RFC 8446, 6.2).
func (p *Proxy) reachBackend(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	if !slices.ContainsFunc(hello.SupportedVersions, func(v uint16) bool { return v == tls.VersionTLS12 || v == tls.VersionTLS13 }) {
		return nil, nil // refused by the versions, without the app
	}
	c := hello.Conn.(*conn)
	ctx, cancel := context.WithTimeout(hello.Context(), p.o.DialTimeout)
	defer cancel()
	backend, err := new(net.Dialer).DialContext(ctx, "tcp", p.o.Backend)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errBackend, err)
	}
	if !c.attach(backend) {
		return nil, net.ErrClosed
	}
	return nil, nil
}

// carry is a connection's whole life. It returns how it ended.
func (p *Proxy) carry(c *conn) result {
	client := tls.Server(c, p.config)
	if why := p.handshake(c, client); why != "" {
		return why
	}
	both := make(chan error, 1)
	go func() { both <- p.copy(c, halfCloser(c.backend), plain{client, c}, &p.metrics.fromClient) }()
	err := p.copy(c, client, c.backend, &p.metrics.toClient)
	err = errors.Join(err, <-both)
	if err == nil {
		// Both halves ended in order, each with its notice.
		client.Close()
		c.backend.Close()
		return c.reason(completed)
	}
	p.o.Log.Debug("connection cut", "client", c.RemoteAddr(), "error", err)
	return c.reason(aborted)
}

// reason is why the connection was ended from outside, or else what it came to.
func (c *conn) reason(otherwise result) result {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.why != "" {
		return c.why
	}
	return otherwise
}

func (p *Proxy) handshake(c *conn, client *tls.Conn) result {
	ctx, cancel := context.WithTimeout(p.ctx, p.o.HandshakeTimeout)
	defer cancel()
	began := time.Now()
	err := client.HandshakeContext(ctx)
	if err == nil {
		p.metrics.shook(began)
		return ""
	}
	why := handshakeFailed
	if errors.Is(err, errBackend) {
		why = backendDown
		p.o.Log.Warn("app not reached", "backend", p.o.Backend, "error", err)
	} else {
		p.o.Log.Debug("handshake failed", "client", c.RemoteAddr(), "error", err)
	}
	// An alert may be under way to the client: FIN, so that it is read. The app
	// has heard nothing yet.
	c.Close()
	if c.backend != nil {
		c.backend.Close()
	}
	return c.reason(why)
}

// writeHalf is a side's writing half.
type writeHalf interface {
	io.Writer
	CloseWrite() error
}

func halfCloser(c net.Conn) writeHalf { return c.(writeHalf) }

// copy carries one direction until it ends in order, which it passes on, or
// fails, which ends the connection.
func (p *Proxy) copy(c *conn, to writeHalf, from io.Reader, count *atomic.Uint64) error {
	buf := p.buffers.Get().(*[bufferLen]byte)
	defer p.buffers.Put(buf)
	for {
		n, err := from.Read(buf[:])
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				c.end(aborted)
				return werr
			}
			count.Add(uint64(n))
			c.moved.Add(1)
		}
		if err == io.EOF {
			if err = to.CloseWrite(); err == nil {
				return nil
			}
		}
		if err != nil {
			c.end(aborted)
			return err
		}
	}
}
