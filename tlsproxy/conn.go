package tlsproxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// smallLen is what a direction that is quiet holds: a request or a small
	// answer fits, and a thousand idle connections are a few megabytes.
	smallLen = 2 << 10
	// bufferLen is what a direction that is busy borrows: four TLS records (RFC
	// 8446, 5.1).
	bufferLen = 64 << 10
	// outLen holds bufferLen sealed.
	outLen = bufferLen + 1<<10
)

// conn is a client's connection and, once there is one, the app's. It is the
// net.Conn under TLS, so that a handshake's callback finds it.
type conn struct {
	net.Conn
	site   *Site
	caller Caller            // by the cell's word
	client *x509.Certificate // verified, where one is required

	fin   atomic.Bool   // the client's FIN came
	moved atomic.Uint64 // grows with each piece carried, in either direction
	quiet int           // ticks since seen changed; endIdle's, as is seen
	seen  uint64

	outMu sync.Mutex
	outs  *sync.Pool
	out   *[]byte // guarded by outMu: sealed records that go out together; nil: at once

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

// Write sends a record, or keeps it for send.
func (c *conn) Write(b []byte) (int, error) {
	c.outMu.Lock()
	defer c.outMu.Unlock()
	if c.out == nil {
		return c.Conn.Write(b)
	}
	*c.out = append(*c.out, b...)
	return len(b), nil
}

// seal writes plain text that is more than one record, whose records then leave
// in one call of the kernel's.
func (c *conn) seal(to io.Writer, b []byte) error {
	c.outMu.Lock()
	c.out = c.outs.Get().(*[]byte)
	c.outMu.Unlock()
	_, err := to.Write(b)
	c.outMu.Lock()
	defer c.outMu.Unlock()
	out := c.out
	c.out = nil
	if err == nil {
		_, err = c.Conn.Write(*out)
	}
	*out = (*out)[:0]
	c.outs.Put(out)
	return err
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

// sealed is the client's side to write to.
type sealed struct {
	*tls.Conn
	c *conn
}

// maxRecord is the plain text of one record (RFC 8446, 5.1).
const maxRecord = 16 << 10

func (s sealed) Write(b []byte) (int, error) {
	if len(b) <= maxRecord {
		return s.Conn.Write(b)
	}
	if err := s.c.seal(s.Conn, b); err != nil {
		return 0, err
	}
	return len(b), nil
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

// reachBackend is called in the handshake, when the client's first message is
// whole: a client that says less than that costs the app nothing, and an error
// here is an internal_error alert to the client (RFC 8446, 6.2).
func (p *Proxy) reachBackend(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	if !slices.ContainsFunc(hello.SupportedVersions, func(v uint16) bool { return v == tls.VersionTLS12 || v == tls.VersionTLS13 }) {
		return nil, nil // refused by the versions, without the app
	}
	c := hello.Conn.(*conn)
	ctx, cancel := context.WithTimeout(p.ctx, p.o.DialTimeout)
	defer cancel()
	backend, err := c.site.Dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errBackend, err)
	}
	if !c.attach(backend) {
		return nil, net.ErrClosed
	}
	if c.site.Clients == nil {
		return nil, nil
	}
	own := c.site.config.Clone() // tickets stay the site's
	own.VerifyConnection = c.verifyClient
	return own, nil
}

// carry is a connection's whole life.
func (p *Proxy) carry(c *conn) {
	// A deadline and not a context: that one would cost a goroutine a handshake.
	c.Conn.SetDeadline(time.Now().Add(p.o.HandshakeTimeout))
	if c.site.Caller != nil {
		ctx, cancel := context.WithTimeout(p.ctx, p.o.HandshakeTimeout)
		var err error
		c.caller, err = c.site.Caller(ctx, addrPort(c.Conn.RemoteAddr()))
		cancel()
		if err != nil {
			reset(c.Conn)
			p.ended(c, c.reason(unknownCaller), err)
			return
		}
	}
	client := tls.Server(c, c.site.config)
	if why, err := p.handshake(c, client); err != nil {
		p.ended(c, why, err)
		return
	}
	c.Conn.SetDeadline(time.Time{})
	if c.site.Identity == IdentityXFCC {
		p.carryHTTP(c, client)
		return
	}
	err := p.introduce(c, client)
	if err == nil {
		both := make(chan error, 1)
		p.crew.run(func() { both <- p.copy(c, halfCloser(c.backend), plain{client, c}, &p.metrics.fromClient) })
		err = p.copy(c, sealed{client, c}, c.backend, &p.metrics.toClient)
		err = errors.Join(err, <-both)
	}
	if err == nil {
		// Both halves ended in order, each with its notice.
		client.Close()
		c.backend.Close()
		p.ended(c, c.reason(completed), nil)
		return
	}
	p.ended(c, c.reason(aborted), err)
}

// introduce tells the app who calls, if it wants to know before the first byte.
func (p *Proxy) introduce(c *conn, client *tls.Conn) error {
	if c.site.Identity != IdentityProxy {
		return nil
	}
	name := ""
	if c.client != nil {
		name = c.client.Subject.CommonName
	}
	header := proxyHeader(addrPort(c.Conn.RemoteAddr()), addrPort(c.Conn.LocalAddr()), c.caller.App, tls.VersionName(client.ConnectionState().Version), name)
	if _, err := c.backend.Write(header); err != nil {
		c.end(aborted)
		return err
	}
	return nil
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.AddrPort()
	}
	return netip.AddrPort{}
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

func (p *Proxy) handshake(c *conn, client *tls.Conn) (result, error) {
	began := time.Now()
	err := client.Handshake()
	if err == nil {
		p.metrics.shook(began)
		return "", nil
	}
	why := classify(err, c.fin.Load())
	// An alert may be under way to the client: FIN, so that it is read. The app
	// has heard nothing yet.
	c.Close()
	c.mu.Lock()
	if c.backend != nil {
		c.backend.Close()
	}
	c.mu.Unlock()
	return c.reason(why), err
}

// recordHandshake is a record's type (RFC 8446, B.1), before the version's 3.
const recordHandshake = 22

// classify says what a failed handshake was.
func classify(err error, fin bool) result {
	var header tls.RecordHeaderError
	switch {
	case errors.Is(err, errBackend):
		return backendDown
	case errors.Is(err, errCertless):
		return noCertificate
	case errors.Is(err, errClient):
		return clientRefused
	case errors.Is(err, os.ErrDeadlineExceeded):
		return slowHandshake
	case errors.As(err, &header) && (header.RecordHeader[0] != recordHandshake || header.RecordHeader[1] != 3):
		return notTLS
	case fin || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE):
		return abandoned
	}
	return handshakeFailed
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
	err := p.move(c, to, from, count)
	if err != nil {
		c.end(aborted)
	}
	return err
}

// move is copy that leaves a failure to its caller. A direction that fills its
// small buffer borrows a large one until it is quiet again.
func (p *Proxy) move(c *conn, to writeHalf, from io.Reader, count *atomic.Uint64) error {
	small := p.smalls.Get().(*[smallLen]byte)
	defer p.smalls.Put(small)
	var large *[bufferLen]byte
	defer func() {
		if large != nil {
			p.buffers.Put(large)
		}
	}()
	for {
		buf := small[:]
		if large != nil {
			buf = large[:]
		}
		n, err := from.Read(buf)
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				return werr
			}
			count.Add(uint64(n))
			c.moved.Add(1)
		}
		switch {
		case large == nil && n == smallLen:
			large = p.buffers.Get().(*[bufferLen]byte)
		case large != nil && n < smallLen:
			p.buffers.Put(large)
			large = nil
		}
		if err == io.EOF {
			return to.CloseWrite()
		}
		if err != nil {
			return err
		}
	}
}
