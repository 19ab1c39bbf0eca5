package egress

import (
	"errors"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"tulle/overlay/netstack"
	"tulle/policy"
)

// patience of a connect, as Linux's own.
const patience = 127 * time.Second

// request is called by a worker with a connection that the container opens.
func (c *container) request(q *netstack.Request) {
	if c.e.isResolver(q.To.Addr()) {
		c.service(q)
		return
	}
	to := netip.AddrPortFrom(q.To.Addr().Unmap(), q.To.Port())
	p := policy.Packet{Protocol: "tcp", To: to.Addr(), Port: to.Port()}
	judged := c.e.judged.Load()
	j := c.judge(p)
	if j.Verdict == Allowed {
		j.Verdict = c.limits.connect(to, c.e.opt.Now(), func() {
			c.e.report(c, event{verdict: RateLimit, packet: p, from: q.From, group: j.group, dry: true})
		})
	}
	if j.Verdict != Allowed {
		c.e.report(c, event{verdict: j.Verdict, packet: p, from: q.From, group: j.group})
		q.Refuse()
		return
	}
	release := func() { c.limits.disconnect(to) }
	s, err := c.e.dial(to, patience)
	if err != nil {
		release()
		c.e.counts.failed.Add(1)
		c.e.opt.Log.Debug("connection failed", "container", c.who.Container, "to", to, "err", err)
		if errors.Is(err, syscall.ETIMEDOUT) || errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
			q.Drop()
		} else {
			q.Refuse()
		}
		return
	}
	// Addresses may have changed while it was being connected. The kernel gives a
	// conversation with an address of this host that address at both ends.
	if s.toItself(to) && !c.e.isHostService(HostService{to, "tcp"}) {
		release()
		s.abort()
		c.e.report(c, event{verdict: HostAddress, packet: p, from: q.From})
		q.Refuse()
		return
	}
	conn, err := q.Accept()
	if err != nil {
		release()
		s.abort()
		return
	}
	record := c.e.begin("tcp", s.local, to, c.who)
	l := c.e.newLine(conn, s, func(l *line) {
		c.leave(l.session)
		release()
		c.e.end(record)
		c.e.counts.open.Add(-1)
	})
	l.session = &session{packet: p, record: record, kill: l.abort, keep: s.keep, since: c.e.opt.Now()}
	c.e.counts.open.Add(1)
	c.e.report(c, event{packet: p, from: q.From, group: j.group, byRule: j.log})
	if !c.enter(l.session) {
		l.abort()
		return
	}
	// Whoever changed rules or surroundings before enter saw no session to end.
	if c.e.judged.Load() != judged && c.judge(p).Verdict != Allowed {
		l.abort()
		return
	}
	l.start()
}

// service hands a connection to the resolver's address to whom it is for.
func (c *container) service(q *netstack.Request) {
	f := c.e.opt.Services[q.To.Port()]
	if f == nil {
		q.Refuse()
		return
	}
	if v := c.limits.connect(q.To, c.e.opt.Now(), nil); v != Allowed {
		q.Refuse()
		return
	}
	defer c.limits.disconnect(q.To)
	conn, err := q.Accept()
	if err != nil {
		return
	}
	f(c.who, conn)
}

func (e *Egress) begin(protocol string, local, remote netip.AddrPort, who Identity) uint64 {
	e.counts.begun(protocol)
	if e.opt.NAT == nil {
		return 0
	}
	return e.opt.NAT.Begin(Mapping{At: e.opt.Now(), Protocol: protocol, Source: local, Remote: remote, Identity: who})
}

func (e *Egress) end(record uint64) {
	if e.opt.NAT != nil {
		e.opt.NAT.End(record, e.opt.Now())
	}
}
