package egress

import (
	"bytes"
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
	// where is the control message that sends from the address which the client asked,
	// of several that the forward has.
	where []byte
}

// askWhere has every datagram tell which of the host's addresses it came to.
func askWhere(fd, domain int) error {
	if domain == unix.AF_INET6 {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
}

// answerFrom makes of what came with a datagram what sends the answer from the address
// that it came to: the same message, by any device, but for an address that means
// nothing without one.
func answerFrom(control []byte) []byte {
	head := unix.CmsgLen(0)
	switch len(control) {
	case unix.CmsgSpace(unix.SizeofInet4Pktinfo):
		clear(control[head:][:4]) // ifindex, before the addresses
	case unix.CmsgSpace(unix.SizeofInet6Pktinfo):
		if a := netip.AddrFrom16([16]byte(control[head:][:16])); !a.IsLinkLocalUnicast() {
			clear(control[head+16:][:4])
		}
	default:
		return nil
	}
	return control
}

// receive gives the container what clients send, until the forward is closed.
func (f *forward) receive() {
	b, control := make([]byte, 65535), make([]byte, unix.CmsgSpace(unix.SizeofInet6Pktinfo))
	for {
		var n, controlLen int
		var from syscall.Sockaddr
		var err error
		rerr := f.raw.Read(func(fd uintptr) bool {
			n, controlLen, _, from, err = syscall.Recvmsg(int(fd), b, control, 0)
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
		as, ok := f.client(c, what.Port, fromSockaddr(from), answerFrom(control[:controlLen]))
		if s == nil || !ok {
			continue
		}
		if err := s.SendDatagram(as, netip.AddrPortFrom(c.at(as.Addr()), what.Port), b[:n]); err != nil {
			f.fs.e.opt.Log.Debug("datagram is lost", "container", c.who.Container, "forward", what.String(), "err", err)
		}
	}
}

// client is a client's address as the container sees it. where is only looked at.
func (f *forward) client(c *container, port uint16, client netip.AddrPort, where []byte) (as netip.AddrPort, ok bool) {
	fs, now := f.fs, f.fs.e.opt.Now()
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if !f.standsLocked() {
		return as, false // what would be noted nobody would forget
	}
	if p := f.clients[client]; p != nil {
		p.last = now
		if !bytes.Equal(p.where, where) {
			p.where = bytes.Clone(where) // never written to: reply may be using it
		}
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
	p := &peer{f: f, client: client, key: key, last: now, where: bytes.Clone(where)}
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
	raw, client, where := p.f.raw, p.client, p.where
	fs.mu.Unlock()
	// What there is no room for is lost, as any datagram.
	_ = raw.Control(func(fd uintptr) { _ = unix.Sendmsg(int(fd), payload, where, sockaddr(client), unix.MSG_NOSIGNAL) })
	return true
}
