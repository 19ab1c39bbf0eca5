package egress

import (
	"context"
	"errors"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"tulle/overlay/fib"
	"tulle/overlay/netstack"
)

// accept takes connections until the forward is closed.
func (f *forward) accept() {
	for {
		var fd int
		var from syscall.Sockaddr
		var err error
		rerr := f.raw.Read(func(l uintptr) bool {
			fd, from, err = syscall.Accept4(int(l), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			return !errors.Is(err, unix.EAGAIN)
		})
		if rerr != nil {
			return
		}
		if err != nil {
			// A client that is gone already, or no descriptor is left: the next may do.
			if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
				time.Sleep(50 * time.Millisecond)
			}
			continue
		}
		s := f.fs.e.newStream(fd)
		f.fs.e.workers.do(func() { f.connect(s, fromSockaddr(from)) })
	}
}

// owner is the forward's container, if it is there.
func (f *forward) owner() (*container, Forward) {
	f.fs.mu.Lock()
	who, what, waiting := f.who, f.Forward, !f.since.IsZero()
	f.fs.mu.Unlock()
	c := f.fs.e.find(who.Address)
	if waiting || c == nil || c.who.Container != who.Container {
		return nil, what
	}
	return c, what
}

// connect joins an accepted connection with the container, as the client: packets
// come to it from the client's own address, which nobody else needs to route.
func (f *forward) connect(s *stream, client netip.AddrPort) {
	c, what := f.owner()
	if c == nil {
		s.abort()
		return
	}
	if c.limits.converse(client) != Allowed {
		s.abort()
		return
	}
	release := func() { c.limits.disconnect(client) }
	conn, err := c.dialIn(client, what.Port)
	if err != nil {
		f.fs.e.opt.Log.Debug("forward is refused", "container", c.who.Container, "forward", what.String(), "client", client, "err", err)
		release()
		s.abort()
		return
	}
	l := c.e.newLine(conn, s, func(l *line) {
		c.leave(l.session)
		release()
		c.e.counts.open.Add(-1)
	})
	l.session = &session{forward: HostService{what.Host, what.Protocol}, kill: l.abort, keep: s.keep, since: c.e.opt.Now()}
	c.e.counts.open.Add(1)
	// Whoever removed the forward before enter saw no session to end.
	if !c.enter(l.session) || !f.stands() {
		l.abort()
		return
	}
	l.start()
}

// stands says that the forward has not been removed.
func (f *forward) stands() bool {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	return f.standsLocked()
}

func (f *forward) standsLocked() bool { return f.fs.all[HostService{f.Host, f.Protocol}] == f }

// haste is how long a container's IPv6 is waited for that never answered before: its
// kernel is on this host, but may have none.
const haste = time.Second

// dialIn opens a connection to the container for a client. Whoever listens on IPv4
// alone still has clients of IPv6: they are seen as those whose address cannot be
// shown.
func (c *container) dialIn(client netip.AddrPort, port uint16) (*netstack.Conn, error) {
	as := c.e.visible(client, c)
	if as.Addr().Is6() {
		wait := haste
		if c.has6.Load() {
			wait = patience
		}
		conn, err := c.dialAs(as, port, wait)
		if err == nil || errors.Is(err, syscall.ECONNREFUSED) {
			c.has6.Store(true)
		}
		if err == nil {
			return conn, nil
		}
		as = netip.AddrPortFrom(c.e.opt.Resolver, 0)
	}
	return c.dialAs(as, port, patience)
}

// at is the container's address in the family of who speaks to it.
func (c *container) at(from netip.Addr) netip.Addr {
	if from.Is6() {
		return fib.Twin(c.who.Address)
	}
	return c.who.Address
}

// dialAs dials from the client's address, if that can be had: two forwards to one port
// may have the same client port.
func (c *container) dialAs(client netip.AddrPort, port uint16, patience time.Duration) (conn *netstack.Conn, err error) {
	s := c.stack()
	if s == nil {
		return nil, netstack.ErrClosed
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	to := netip.AddrPortFrom(c.at(client.Addr()), port)
	if conn, err = s.Dial(ctx, client, to); errors.Is(err, syscall.EADDRINUSE) {
		conn, err = s.Dial(ctx, netip.AddrPortFrom(client.Addr(), 0), to)
	}
	return conn, err
}

// visible is the client as the container sees it: its own address, unless a
// container's kernel, or its policies, would take it for something else. Then it is
// the resolver's of its family, with any port.
func (e *Egress) visible(client netip.AddrPort, c *container) netip.AddrPort {
	a := client.Addr()
	if isSpecial(a) || a == c.who.Address || e.opt.Overlay.Contains(a) || a.Is6() && e.opt.IPv4Only {
		return netip.AddrPortFrom(e.anonymous(a.Is6()), 0)
	}
	return client
}

// anonymous is the address of clients whose own is not shown.
func (e *Egress) anonymous(six bool) netip.Addr {
	if six && !e.opt.IPv4Only && e.opt.Resolver6.IsValid() {
		return e.opt.Resolver6
	}
	return e.opt.Resolver
}

// endForward ends the connections of one forward.
func (c *container) endForward(f Forward) {
	c.mu.Lock()
	var live []*session
	for s := range c.sessions {
		if s.forward == (HostService{f.Host, f.Protocol}) {
			live = append(live, s)
		}
	}
	c.mu.Unlock()
	for _, s := range live {
		s.kill()
	}
}
