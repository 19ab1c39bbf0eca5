package egress

import (
	"errors"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// firstPort of clients whose own address the container cannot be shown.
const firstPort = 20000

// maxClients of one datagram forward.
const maxClients = 4096

// replyKey is how the container's answer to a client of a forward looks.
type replyKey struct {
	container netip.Addr
	port      uint16         // the container's
	to        netip.AddrPort // the client as the container sees it
}

// peer is one client of a datagram forward. Guarded by forwards.mu.
type peer struct {
	f      *forward
	client netip.AddrPort
	key    replyKey
	last   time.Time
}

// receive gives the container what clients send, until the forward is closed.
func (f *forward) receive() {
	b := make([]byte, 65535)
	for {
		var n int
		var from syscall.Sockaddr
		var err error
		rerr := f.raw.Read(func(fd uintptr) bool {
			n, from, err = syscall.Recvfrom(int(fd), b, 0)
			return !errors.Is(err, unix.EAGAIN)
		})
		if rerr != nil {
			return
		}
		if err != nil {
			continue // what the network says of a reply
		}
		c, what := f.owner()
		if c == nil {
			continue
		}
		s := c.stack()
		as, ok := f.client(c, what.Port, fromSockaddr(from))
		if s == nil || !ok {
			continue
		}
		if err := s.SendDatagram(as, netip.AddrPortFrom(c.at(as.Addr()), what.Port), b[:n]); err != nil {
			f.fs.e.opt.Log.Debug("datagram is lost", "container", c.who.Container, "forward", what.String(), "err", err)
		}
	}
}

// client is a client's address as the container sees it.
func (f *forward) client(c *container, port uint16, client netip.AddrPort) (as netip.AddrPort, ok bool) {
	fs, now := f.fs, f.fs.e.opt.Now()
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if p := f.clients[client]; p != nil {
		p.last = now
		return p.key.to, true
	}
	if len(f.clients) >= maxClients {
		return as, false
	}
	key := replyKey{c.who.Address, port, fs.e.visible(client, c)}
	if key.to.Port() == 0 || fs.replies[key] != nil {
		if !fs.anonymousLocked(&key, fs.e.anonymous(client.Addr().Is6())) {
			return as, false
		}
	}
	p := &peer{f: f, client: client, key: key, last: now}
	f.clients[client], fs.replies[key] = p, p
	return key.to, true
}

// anonymousLocked gives a client that address and a port.
func (fs *forwards) anonymousLocked(key *replyKey, as netip.Addr) bool {
	for range 65535 - firstPort {
		fs.next = max(firstPort, fs.next+1)
		key.to = netip.AddrPortFrom(as, fs.next)
		if fs.replies[*key] == nil {
			return true
		}
	}
	return false
}

// refused is called with a datagram for a port that the container says is closed. If a
// client of a forward sent it over IPv6, whoever listens may do so on IPv4 alone: the
// client is one whose address cannot be shown from now on.
func (c *container) refused(from, to netip.AddrPort, payload []byte) {
	fs := &c.e.forwards
	fs.mu.Lock()
	p := fs.replies[replyKey{c.who.Address, to.Port(), from}]
	if p == nil || !from.Addr().Is6() {
		fs.mu.Unlock()
		return
	}
	key := p.key
	ok := fs.anonymousLocked(&key, fs.e.opt.Resolver)
	if ok {
		delete(fs.replies, p.key)
		p.key, fs.replies[key] = key, p
	}
	fs.mu.Unlock()
	if s := c.net.Load(); s != nil && ok && payload != nil {
		_ = s.SendDatagram(key.to, netip.AddrPortFrom(c.who.Address, key.port), payload)
	}
}

// reply sends a container's datagram back to a forward's client, and says whether it
// was one.
func (fs *forwards) reply(c *container, from, to netip.AddrPort, payload []byte) bool {
	fs.mu.Lock()
	p := fs.replies[replyKey{c.who.Address, from.Port(), to}]
	if p == nil {
		fs.mu.Unlock()
		return false
	}
	p.last = fs.e.opt.Now()
	raw, client := p.f.raw, p.client
	fs.mu.Unlock()
	// What there is no room for is lost, as any datagram.
	_ = raw.Control(func(fd uintptr) { _ = unix.Sendto(int(fd), payload, unix.MSG_NOSIGNAL, sockaddr(client)) })
	return true
}
