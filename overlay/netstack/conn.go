package netstack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Errors of connections.
var (
	// ErrWouldBlock is TryRead's: there is nothing now; Notify's function is called
	// when there is.
	ErrWouldBlock = errors.New("nothing to read yet")
	// ErrClosed is returned for what is asked of a stack that has ended.
	ErrClosed = errors.New("the container's stack has ended")
)

// Request is a connection that the container opens: its SYN has come. Exactly one
// of Accept, Refuse and Drop ends it.
type Request struct {
	s *Stack
	r *tcp.ForwarderRequest
	// From is the container's end, To what it wants to reach.
	From, To netip.AddrPort
}

func (s *Stack) request(r *tcp.ForwarderRequest) {
	id := r.ID()
	q := &Request{s: s, r: r, From: addrPort(id.RemoteAddress, id.RemotePort), To: addrPort(id.LocalAddress, id.LocalPort)}
	if s.opt.Request == nil {
		q.Refuse()
		return
	}
	s.opt.Request(q)
}

// Accept completes the handshake, which takes the container's answer.
func (q *Request) Accept() (*Conn, error) {
	c := &Conn{s: q.s, local: q.To, remote: q.From}
	ep, err := q.r.CreateEndpoint(&c.wq)
	// Only now: until then the SYN's repetitions are this request.
	q.r.Complete(false)
	if err != nil {
		return nil, fmt.Errorf("accept %s for %s: %s", q.From, q.To, err)
	}
	return q.s.established(c, ep)
}

// Refuse answers with a RST.
func (q *Request) Refuse() { q.r.Complete(true) }

// Drop answers nothing: the container's kernel tries again.
func (q *Request) Drop() { q.r.Complete(false) }

// Dial opens a connection to the container, to, that comes from from: any address
// of to's family that the container's kernel takes a packet from. Port 0 is any that
// is free.
func (s *Stack) Dial(ctx context.Context, from, to netip.AddrPort) (*Conn, error) {
	c := &Conn{s: s, remote: to}
	network := ipv4.ProtocolNumber
	if to.Addr().Is6() {
		network = ipv6.ProtocolNumber
	}
	ep, terr := s.s.NewEndpoint(tcp.ProtocolNumber, network, &c.wq)
	if terr != nil {
		return nil, fmt.Errorf("dial %s: %s", to, terr)
	}
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	c.wq.EventRegister(&entry)
	defer c.wq.EventUnregister(&entry)
	err := ep.Bind(full(from))
	if err == nil {
		err = ep.Connect(full(to))
	}
	if _, started := err.(*tcpip.ErrConnectStarted); started {
		select {
		case <-ctx.Done():
			ep.Abort()
			return nil, fmt.Errorf("dial %s from %s: %w", to, from, ctx.Err())
		case <-ready:
		}
		err = ep.LastError()
	}
	if err != nil {
		ep.Close()
		return nil, fmt.Errorf("dial %s from %s: %w", to, from, errno(err))
	}
	if at, err := ep.GetLocalAddress(); err == nil {
		c.local = addrPort(at.Addr, at.Port)
	}
	return s.established(c, ep)
}

// errno is the error of a dial as the kernel would have it.
func errno(err tcpip.Error) error {
	switch err.(type) {
	case *tcpip.ErrConnectionRefused:
		return syscall.ECONNREFUSED
	case *tcpip.ErrPortInUse:
		return syscall.EADDRINUSE
	case *tcpip.ErrTimeout:
		return syscall.ETIMEDOUT
	case *tcpip.ErrConnectionReset:
		return syscall.ECONNRESET
	case *tcpip.ErrHostUnreachable:
		return syscall.EHOSTUNREACH
	}
	return errors.New(err.String())
}

// Conn is an established connection with the container: a net.Conn whose local
// end is the outer one, with half-close (CloseRead, CloseWrite).
type Conn struct {
	*gonet.TCPConn
	s             *Stack
	ep            tcpip.Endpoint
	wq            waiter.Queue
	local, remote netip.AddrPort
	once          sync.Once
}

func (s *Stack) established(c *Conn, ep tcpip.Endpoint) (*Conn, error) {
	c.ep = ep
	c.TCPConn = gonet.NewTCPConn(&c.wq, ep)
	// Idle connections cost little of it, and every one may hold its part.
	n, ok := s.open.add(c)
	if !ok {
		ep.Abort()
		return nil, ErrClosed
	}
	if part := int64(max(minBuffer, min(maxBuffer/2, s.opt.Memory/(2*n)))); part < maxBuffer/2 {
		ep.SocketOptions().SetReceiveBufferSize(part, true)
		ep.SocketOptions().SetSendBufferSize(part, true)
	}
	return c, nil
}

// Local is the outer end: what the container wanted to reach, or where a dialled
// connection comes from.
func (c *Conn) Local() netip.AddrPort { return c.local }

// Remote is the container's end.
func (c *Conn) Remote() netip.AddrPort { return c.remote }

// Close ends the connection in order: what was written is sent, then FIN.
func (c *Conn) Close() error {
	c.once.Do(func() { c.s.open.remove(c) })
	return c.TCPConn.Close()
}

// Abort ends the connection with a RST.
func (c *Conn) Abort() {
	c.once.Do(func() { c.s.open.remove(c) })
	c.ep.Abort()
}

// Notify calls f, from the stack's goroutines, whenever TryRead may say something
// new: it must not block. stop ends that.
func (c *Conn) Notify(f func()) (stop func()) {
	entry := waiter.NewFunctionEntry(waiter.ReadableEvents|waiter.EventHUp|waiter.EventErr|waiter.EventRdHUp, func(waiter.EventMask) { f() })
	c.wq.EventRegister(&entry)
	return func() { c.wq.EventUnregister(&entry) }
}

// TryRead reads what is there into b: ErrWouldBlock if nothing is, io.EOF behind
// the container's FIN, ECONNRESET behind its RST.
func (c *Conn) TryRead(b []byte) (int, error) {
	w := tcpip.SliceWriter(b)
	res, err := c.ep.Read(&w, tcpip.ReadOptions{})
	switch err.(type) {
	case nil:
		return res.Count, nil
	case *tcpip.ErrWouldBlock:
		return 0, ErrWouldBlock
	case *tcpip.ErrClosedForReceive:
		return 0, io.EOF
	}
	return 0, errno(err)
}

// TryWrite writes what there is room for and returns the rest. b is the caller's again.
func (c *Conn) TryWrite(b []byte) (rest []byte, err error) {
	for len(b) > 0 {
		var r bytes.Reader
		r.Reset(b)
		n, terr := c.ep.Write(&r, tcpip.WriteOptions{})
		b = b[n:]
		switch terr.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			return b, nil
		default:
			return b, errno(terr)
		}
	}
	return nil, nil
}

// WriteAll writes b, waiting for room. b is the caller's again when it returns.
func (c *Conn) WriteAll(b []byte) error {
	_, err := io.Copy(struct{ io.Writer }{c.TCPConn}, bytes.NewReader(b))
	return err
}

// connections are the open ones, so that Close can end them.
type connections struct {
	mu     sync.Mutex // guards what follows
	closed bool
	all    map[*Conn]struct{}
}

func (o *connections) add(c *Conn) (n int, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return 0, false
	}
	if o.all == nil {
		o.all = map[*Conn]struct{}{}
	}
	o.all[c] = struct{}{}
	return len(o.all), true
}

func (o *connections) remove(c *Conn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.all, c)
}

func (o *connections) closeAll() {
	o.mu.Lock()
	all := o.all
	o.closed, o.all = true, nil
	o.mu.Unlock()
	for c := range all {
		c.ep.Abort()
	}
}
