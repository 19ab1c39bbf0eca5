// Package udptest is a network in memory for [udp.Conn]s, under a test's
// control: a hook sees every datagram on its way and delivers, drops, repeats or
// holds it; held ones are released when, and in the order, the test says. There
// is no clock and nothing happens by chance. All may be called from any
// goroutine, the hook too.
package udptest

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"tulle/overlay/udp"
)

// queue is how many datagrams wait at a receiver before more are lost, as in a
// socket's buffer.
const queue = 8192

// Datagram is one datagram on its way. Payload is its receiver's; a hook may
// change it.
type Datagram struct {
	From, To netip.AddrPort
	Payload  []byte
	ECN      uint8 // of the outer header; a hook may change it as a router does
}

// Fate is what happens to a datagram.
type Fate uint8

// Fates.
const (
	Deliver Fate = iota
	Drop
	Duplicate // delivered twice, one behind the other
	Hold      // kept until Release
)

// Network joins the Conns that listen on it.
type Network struct {
	mu    sync.Mutex // all below
	conns map[netip.AddrPort]*Conn
	hook  func(*Datagram) Fate
	held  []Datagram
	lost  int
	given int    // datagrams delivered so far
	next  uint16 // port given for port 0
	mtu   int
}

// New makes a network that delivers everything.
func New() *Network {
	return &Network{conns: make(map[netip.AddrPort]*Conn), next: 40000}
}

// SetHook makes h decide about every datagram from now on; nil delivers all. h
// runs in the sender's Send, one at a time, and must not call the network.
func (n *Network) SetHook(h func(*Datagram) Fate) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hook = h
}

// SetMTU makes Send answer [udp.ErrMessageSize] for segments longer than
// payload bytes; 0 takes any.
func (n *Network) SetMTU(payload int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mtu = payload
}

// Held is the number of datagrams held back.
func (n *Network) Held() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.held)
}

// Release delivers the held datagrams with the given indices, in the order
// given, and forgets them; without indices all, oldest first. Releasing 1, 0
// reorders.
func (n *Network) Release(indices ...int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(indices) == 0 {
		for _, d := range n.held {
			n.deliverLocked(d)
		}
		n.held = nil
		return
	}
	for _, i := range indices {
		n.deliverLocked(n.held[i])
	}
	kept := n.held[:0:0]
	for i, d := range n.held {
		if !slices.Contains(indices, i) {
			kept = append(kept, d)
		}
	}
	n.held = kept
}

// Lost is the number of datagrams that reached nobody: dropped by the hook, sent
// to where none listens, or behind a full queue.
func (n *Network) Lost() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.lost
}

// Listen opens a Conn at addr. Port 0 is replaced by a free one.
func (n *Network) Listen(addr netip.AddrPort) (*Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if addr.Port() == 0 {
		for {
			addr = netip.AddrPortFrom(addr.Addr(), n.next)
			n.next++
			if n.conns[addr] == nil {
				break
			}
		}
	}
	if n.conns[addr] != nil {
		return nil, fmt.Errorf("listen on %s: address already in use", addr)
	}
	c := &Conn{net: n, local: addr, queue: make(chan Datagram, queue), closed: make(chan struct{})}
	n.conns[addr] = c
	return c, nil
}

func (n *Network) deliverLocked(d Datagram) {
	c := n.conns[d.To]
	if c == nil {
		n.lost++
		return
	}
	select {
	case c.queue <- d:
		n.given++
		c.given.Add(1)
	default:
		n.lost++
	}
}

// Quiet says whether all that was delivered has been received by somebody who has come
// back for more, and how much that is. As long as the number stays, so does the quiet.
func (n *Network) Quiet() (delivered int, quiet bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.conns {
		if c.given.Load() != c.done.Load() {
			return n.given, false
		}
	}
	return n.given, true
}

// Conn is a [udp.Conn] of a Network. Like a kernel with UDP_GRO it joins
// datagrams of one sender and equal length that wait together.
type Conn struct {
	net       *Network
	local     netip.AddrPort
	queue     chan Datagram
	ahead     *Datagram    // taken from queue, did not fit the message before; the receiver's
	given     atomic.Int64 // datagrams put into queue
	done      atomic.Int64 // of those, the ones whose receiver has come back
	taken     int64        // the receiver's
	closed    chan struct{}
	closeOnce sync.Once
}

var _ udp.Conn = (*Conn)(nil)

// Local is the bound address.
func (c *Conn) Local() netip.AddrPort { return c.local }

// Send copies b into datagrams.
func (c *Conn) Send(to netip.AddrPort, b []byte, segment int) error {
	return c.SendECN(to, b, segment, 0)
}

// SendECN copies b into datagrams.
func (c *Conn) SendECN(to netip.AddrPort, b []byte, segment int, ecn uint8) error {
	if c.isClosed() {
		return udp.ErrClosed
	}
	if segment <= 0 || segment > len(b) {
		segment = len(b)
	}
	if len(b) > segment && (len(b) > udp.MaxSend || len(b) > segment*udp.MaxSegments) {
		return udp.ErrTooMany
	}
	n := c.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mtu > 0 && segment > n.mtu {
		return udp.ErrMessageSize
	}
	for first := true; first || len(b) > 0; first = false {
		d := Datagram{From: c.local, To: to, Payload: slices.Clone(b[:min(segment, len(b))]), ECN: ecn}
		b = b[len(d.Payload):]
		fate := Deliver
		if n.hook != nil {
			fate = n.hook(&d)
		}
		switch fate {
		case Deliver:
			n.deliverLocked(d)
		case Duplicate:
			n.deliverLocked(d)
			n.deliverLocked(Datagram{d.From, d.To, slices.Clone(d.Payload), d.ECN})
		case Hold:
			n.held = append(n.held, d)
		case Drop:
			n.lost++
		}
	}
	return nil
}

// Receive waits for at least one datagram and takes all that are there.
func (c *Conn) Receive(batch []udp.Message) (int, error) {
	if len(batch) == 0 {
		return 0, errors.New("receive into an empty batch")
	}
	c.done.Store(c.taken)
	d, ok := c.take(true)
	if !ok {
		return 0, udp.ErrClosed
	}
	n := 0
	for {
		c.taken++
		m := &batch[n]
		m.N = copy(m.Buf, d.Payload)
		m.Segment, m.From, m.ECN = m.N, d.From, d.ECN
		n++
		more := false
		for last := m.N; ; {
			d, more = c.take(false)
			if !more {
				return n, nil
			}
			if d.From != m.From || d.ECN != m.ECN || last < m.Segment || len(d.Payload) > m.Segment || len(d.Payload) == 0 ||
				m.N+len(d.Payload) > udp.MaxSend || m.N/m.Segment >= udp.MaxSegments {
				break
			}
			c.taken++
			last = copy(m.Buf[m.N:], d.Payload)
			m.N += last
		}
		if n == len(batch) {
			c.ahead = &d
			return n, nil
		}
	}
}

// take is the next datagram, and whether there is one (waiting: or the Conn is
// still open).
func (c *Conn) take(wait bool) (Datagram, bool) {
	if c.isClosed() {
		return Datagram{}, false
	}
	if d := c.ahead; d != nil {
		c.ahead = nil
		return *d, true
	}
	if !wait {
		select {
		case d := <-c.queue:
			return d, true
		default:
			return Datagram{}, false
		}
	}
	select {
	case d := <-c.queue:
		return d, true
	case <-c.closed:
		return Datagram{}, false
	}
}

func (c *Conn) isClosed() bool {
	select {
	case <-c.closed:
		return true
	default:
		return false
	}
}

// Close frees the address and wakes Receive. It is idempotent.
func (c *Conn) Close() error {
	c.closeOnce.Do(func() {
		close(c.closed)
		c.net.mu.Lock()
		defer c.net.mu.Unlock()
		delete(c.net.conns, c.local)
	})
	return nil
}
