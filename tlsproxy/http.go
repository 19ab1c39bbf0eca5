package tlsproxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"tulle/tlsproxy/http1"
)

const (
	// answerTimeout is how long the app may take to end what it was asked before a
	// request that is refused.
	answerTimeout = 5 * time.Second
	// lingering is for how long, and how much, a client that was refused may go on
	// sending: a reset would take the answer from it.
	lingerTime, lingerBytes = 2 * time.Second, 1 << 20
)

const badRequestAnswer = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: "

// exchange is the HTTP of one connection.
type exchange struct {
	p      *Proxy
	c      *conn
	client *tls.Conn
	in     *http1.Reader
	out    *http1.Upgrade

	sent    atomic.Uint64 // bytes of answers
	refused atomic.Pointer[refused]
}

type refused struct {
	*http1.Refusal
	begun bool   // the app has a part of the request
	sent  uint64 // bytes of answers before
}

// carryHTTP is the rest of a connection whose requests bear the caller's identity.
func (p *Proxy) carryHTTP(c *conn, client *tls.Conn) {
	e := &exchange{p: p, c: c, client: client, out: http1.NewUpgrade(c.backend)}
	e.in = http1.NewReader(plain{client, c}, headerXFCC, xfcc(p.own(c.site), c.client, c.caller), e.out)
	e.in.Timed = func(on bool) {
		var at time.Time
		if on {
			at = time.Now().Add(p.o.HeadTimeout)
		}
		c.Conn.SetReadDeadline(at)
	}
	both := make(chan error, 1)
	p.crew.run(func() { both <- e.requests() })
	err := e.answers()
	err = errors.Join(err, <-both)
	switch r := e.refused.Load(); {
	case err == nil:
		client.Close()
		c.backend.Close()
		p.ended(c, c.reason(completed), nil)
	case r != nil && c.reason(badRequest) == badRequest:
		e.linger()
		c.backend.Close()
		p.ended(c, badRequest, r)
	default:
		p.ended(c, c.reason(aborted), err)
	}
}

// own is the certificate that this container has.
func (p *Proxy) own(s *Site) *x509.Certificate {
	ctx, cancel := context.WithTimeout(p.ctx, p.o.HandshakeTimeout)
	defer cancel()
	cert, err := s.Certificate(ctx)
	if err != nil {
		return nil
	}
	return leaf(cert)
}

// requests carries what the client asks. After a refusal the app hears no more,
// and ends with what it was asked before.
func (e *exchange) requests() error {
	err := e.p.move(e.c, halfCloser(e.c.backend), e.in, &e.p.metrics.fromClient)
	var refusal *http1.Refusal
	if !errors.As(err, &refusal) {
		if err != nil {
			e.c.end(aborted)
		}
		return err
	}
	n, whole := e.in.Requests()
	e.refused.Store(&refused{Refusal: refusal, begun: !whole, sent: e.sent.Load()})
	if n == 0 {
		e.c.backend.Close() // which ends answers
		return err
	}
	e.c.backend.SetReadDeadline(time.Now().Add(answerTimeout))
	if cerr := halfCloser(e.c.backend).CloseWrite(); cerr != nil {
		e.c.backend.Close()
	}
	return err
}

// answers carries what the app says, as it is.
func (e *exchange) answers() error {
	err := e.p.move(e.c, e, e.out, &e.p.metrics.toClient)
	r := e.refused.Load()
	switch {
	case err == nil:
		return nil
	case r != nil && errors.Is(err, net.ErrClosed):
		return e.CloseWrite()
	case r != nil:
		e.c.end(badRequest)
	}
	e.c.end(aborted)
	return err
}

func (e *exchange) Write(b []byte) (int, error) {
	n, err := sealed{e.client, e.c}.Write(b)
	e.sent.Add(uint64(n))
	return n, err
}

// CloseWrite ends what the client reads. One whose request was refused is told so,
// unless the app has answered the part of it that it has.
func (e *exchange) CloseWrite() error {
	if r := e.refused.Load(); r != nil && !(r.begun && e.sent.Load() > r.sent) {
		text := r.Error() + "\n"
		if _, err := io.WriteString(e.client, fmt.Sprintf("%s%d\r\n\r\n%s", badRequestAnswer, len(text), text)); err != nil {
			return err
		}
	}
	return e.client.CloseWrite()
}

// linger takes what a refused client still sends.
func (e *exchange) linger() {
	e.c.Conn.SetDeadline(time.Now().Add(lingerTime))
	if t, ok := e.c.Conn.(*net.TCPConn); ok {
		t.CloseWrite()
	}
	io.CopyN(io.Discard, e.c.Conn, lingerBytes)
	e.c.Close()
}
