package egress

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"tulle/overlay/fib"
	"tulle/overlay/packet"
	"tulle/policy"
)

// How long a datagram conversation may be silent, as Linux's connection tracking has
// it: less while nothing has been answered.
const (
	idleOneWay = 30 * time.Second
	idleBoth   = 180 * time.Second
)

// datagrams is a conversation of UDP datagrams or of echo requests and replies.
type datagrams struct {
	*session
	c    *container
	key  flowKey
	sock *socket
	once sync.Once

	last     atomic.Int64 // UnixNano of the last datagram either way
	answered atomic.Bool
}

func (d *datagrams) idle(now time.Time) bool {
	limit := idleOneWay
	if d.answered.Load() {
		limit = idleBoth
	}
	return now.Sub(time.Unix(0, d.last.Load())) > limit
}

// datagram carries one that the container sent. It is called by the device's reader.
func (c *container) datagram(from, to netip.AddrPort, payload []byte) {
	if c.e.forwards.reply(c, from, to, payload) {
		return
	}
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	c.send(flowKey{packet.ProtoUDP, from, to}, policy.Packet{Protocol: "udp", To: to.Addr(), Port: to.Port()}, payload)
}

// echo carries an echo request: message is the ICMP message.
func (c *container) echo(from, to netip.Addr, message []byte) {
	to = to.Unmap()
	id := binary.BigEndian.Uint16(message[4:6])
	key := flowKey{packet.ProtoICMP, netip.AddrPortFrom(from, id), netip.AddrPortFrom(to, 0)}
	if to.Is6() {
		key.protocol = packet.ProtoICMPv6
	}
	c.send(key, policy.Packet{Protocol: "icmp", To: to, Type: message[0], Code: message[1]}, message)
}

func (c *container) send(key flowKey, p policy.Packet, b []byte) {
	c.mu.Lock()
	d := c.datagrams[key]
	c.mu.Unlock()
	if d == nil {
		var v Verdict
		if d, v = c.openDatagrams(key, p); d == nil {
			if v != Allowed {
				c.unreachable(v, key, b)
			}
			return
		}
	}
	d.last.Store(c.e.opt.Now().UnixNano())
	err := d.sock.send(b)
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EACCES) {
		// The news is about the datagram before; this one was not sent.
		d.unreachable(err)
		err = d.sock.send(b)
	}
	if err != nil {
		c.e.opt.Log.Debug("datagram is lost", "container", c.who.Container, "to", key.to, "err", err)
	}
}

// openDatagrams begins a conversation. Without one, the verdict says what to tell the
// container; Allowed is nothing.
func (c *container) openDatagrams(key flowKey, p policy.Packet) (*datagrams, Verdict) {
	if c.e.isResolver(key.to.Addr()) {
		return nil, GuardedPort // nothing there but DNS, which is the data path's
	}
	judged := c.e.judged.Load()
	j := c.judge(p)
	if j.Verdict == Allowed {
		j.Verdict = c.limits.converse(key.to)
	}
	if j.Verdict != Allowed {
		c.e.report(c, event{verdict: j.Verdict, packet: p, from: key.from, group: j.group})
		return nil, j.Verdict
	}
	proto := 0
	if key.protocol != packet.ProtoUDP {
		proto = int(key.protocol) // a ping socket
	}
	s, err := c.e.open(proto, key.to)
	if err != nil {
		c.limits.disconnect(key.to)
		c.e.counts.failed.Add(1)
		if proto != 0 && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM)) {
			c.e.noPing(err)
			return nil, Allowed // no answer is the truth: nobody was asked
		}
		c.e.opt.Log.Debug("conversation failed", "container", c.who.Container, "to", key.to, "err", err)
		if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) {
			return nil, NoRoute
		}
		return nil, Allowed
	}
	if s.toItself(key.to) && !c.e.isHostService(HostService{key.to, p.Protocol}) {
		c.limits.disconnect(key.to)
		s.close()
		c.e.report(c, event{verdict: HostAddress, packet: p, from: key.from})
		return nil, HostAddress
	}
	d := &datagrams{c: c, key: key, sock: s}
	d.session = &session{packet: p, record: c.e.begin(p.Protocol, s.local, key.to, c.who)}
	d.session.kill = d.close
	d.last.Store(c.e.opt.Now().UnixNano())
	c.e.counts.open.Add(1)
	c.e.report(c, event{packet: p, from: key.from, group: j.group, byRule: j.log})
	c.mu.Lock()
	c.datagrams[key] = d
	c.mu.Unlock()
	// Before it is used, and with the rules that there are now.
	if !c.enter(d.session) || c.e.judged.Load() != judged && c.judge(p).Verdict != Allowed {
		d.close()
		return nil, Ended
	}
	go d.receive()
	return d, Allowed
}

func (d *datagrams) close() {
	d.once.Do(func() {
		d.c.mu.Lock()
		if d.c.datagrams[d.key] == d {
			delete(d.c.datagrams, d.key)
		}
		delete(d.c.sessions, d.session)
		d.c.mu.Unlock()
		d.sock.close()
		d.c.limits.disconnect(d.key.to)
		d.c.e.end(d.record)
		d.c.e.counts.open.Add(-1)
	})
}

// receive gives the container what comes back.
func (d *datagrams) receive() {
	defer d.close()
	for {
		b, n, err := d.sock.read(getDatagram, putDatagram)
		stack := d.c.net.Load()
		switch {
		case err != nil:
			if b != nil {
				putDatagram(b)
			}
			if !d.unreachable(err) {
				return
			}
			continue
		case stack == nil:
			putDatagram(b)
			return
		}
		d.last.Store(d.c.e.opt.Now().UnixNano())
		d.answered.Store(true)
		from, to := d.key.to, d.key.from
		if d.key.protocol == packet.ProtoUDP {
			err = stack.SendDatagram(from, to, b[:n])
		} else if n >= packet.ICMPHeaderLen && isEchoReply(d.key.protocol, b[0]) {
			binary.BigEndian.PutUint16(b[4:6], to.Port())
			err = stack.SendEchoReply(from.Addr(), to.Addr(), b[:n])
		}
		putDatagram(b)
		if err != nil {
			d.c.e.opt.Log.Debug("datagram is lost", "container", d.c.who.Container, "from", from, "err", err)
		}
	}
}

func isEchoReply(protocol, typ uint8) bool {
	if protocol == packet.ProtoICMPv6 {
		return typ == packet.ICMPv6EchoReply
	}
	return typ == packet.ICMPEchoReply
}

// unreachable passes on what the network said of a datagram; false if err is no such
// news.
func (d *datagrams) unreachable(err error) bool {
	code, ok := uint8(0), true
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		code = packet.CodePortUnreachable
	case errors.Is(err, unix.EHOSTUNREACH):
		code = packet.CodeHostUnreachable
	case errors.Is(err, unix.ENETUNREACH):
		code = packet.CodeNetUnreachable
	case errors.Is(err, unix.EACCES): // IPv6's administratively prohibited
		code = packet.CodeProhibited
	case errors.Is(err, unix.EMSGSIZE), errors.Is(err, unix.EPROTO):
		return true
	default:
		ok = false
	}
	if ok {
		d.c.tell(d.key.to.Addr(), code, quote(d.key, nil))
	}
	return ok
}

// unreachable answers what is not allowed, as the original's packet filter does.
func (c *container) unreachable(v Verdict, key flowKey, b []byte) {
	code := uint8(packet.CodePortUnreachable)
	if v == NoRoute {
		code = packet.CodeNetUnreachable
	}
	from := c.e.opt.Gateway
	if key.to.Addr().Is6() {
		from = fib.Twin(from)
	}
	c.tell(from, code, quote(key, b))
}

func (c *container) tell(from netip.Addr, code uint8, quoted []byte) {
	if s := c.net.Load(); s != nil && c.limits.answer() {
		_ = s.SendUnreachable(from, code, quoted)
	}
}

// quote makes what the container sent, as far as its kernel looks at it.
func quote(key flowKey, message []byte) []byte {
	if key.protocol == packet.ProtoUDP {
		return packet.AppendUDP(nil, key.from, key.to, nil)
	}
	var seq uint16
	if len(message) >= packet.ICMPHeaderLen {
		seq = binary.BigEndian.Uint16(message[6:8])
	}
	return packet.AppendEcho(nil, key.from.Addr(), key.to.Addr(), false, key.from.Port(), seq, nil, 0)
}

// noPing says, once, what ping sockets need.
func (e *Egress) noPing(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.pingSaid {
		return
	}
	e.pingSaid = true
	e.opt.Log.Warn("containers' echo requests go nowhere: this host lets the daemon's group open no ping socket; as root: sysctl -w net.ipv4.ping_group_range='GID GID'", "gid", unix.Getegid(), "err", err)
}

var datagramBuffers = sync.Pool{New: func() any { return new([packet.MaxLen]byte) }}

func getDatagram() []byte  { return datagramBuffers.Get().(*[packet.MaxLen]byte)[:] }
func putDatagram(b []byte) { datagramBuffers.Put((*[packet.MaxLen]byte)(b[:packet.MaxLen])) }
