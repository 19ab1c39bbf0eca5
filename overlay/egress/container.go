package egress

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"tulle/overlay/egress/rules"
	"tulle/overlay/netstack"
	"tulle/overlay/trafficlog"
	"tulle/policy"
)

// container is one attached container.
type container struct {
	e           *Egress
	who         Identity
	logged      trafficlog.End // who it is in the traffic log
	incarnation uint64
	rules       atomic.Pointer[rules.Set]
	limits      limiter
	has6        atomic.Bool // something of it answered over IPv6

	once sync.Once
	net  atomic.Pointer[netstack.Stack]

	mu        sync.Mutex // guards what follows
	ended     bool
	sessions  map[*session]struct{}
	datagrams map[flowKey]*datagrams
}

// session is one live conversation with the outside.
type session struct {
	packet  policy.Packet // what was judged; zero for a forward's
	forward HostService   // whose it is; zero for one that the container began
	record  uint64        // of the NAT log
	kill    func()        // ends it at once; may be called again
	// keep is called once, when the conversation is no brief one.
	keep  func()
	since time.Time
}

// brief is how long a conversation may last until it is held to be a lasting one.
const brief = 10 * time.Second

// stack is the container's end of everything, made when it is first needed; nil if
// the container is gone.
func (c *container) stack() *netstack.Stack {
	c.once.Do(func() {
		s, err := netstack.New(netstack.Options{
			MTU:      c.e.opt.MTU,
			Device:   func(pieces ...[]byte) error { return c.e.opt.Deliver(c.who.Address, c.incarnation, pieces...) },
			Request:  func(q *netstack.Request) { c.e.workers.lend(func() { c.request(q) }) },
			Datagram: c.datagram,
			Echo:     c.echo,
			Refused:  c.refused,
		})
		if err != nil {
			c.e.opt.Log.Error("container reaches nothing outside the overlay", "container", c.who.Container, "err", err)
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.ended {
			go s.Close()
			return
		}
		c.net.Store(s)
	})
	return c.net.Load()
}

// end ends all conversations. The stack's own goroutines are waited for.
func (c *container) end() {
	c.once.Do(func() {}) // none is made any more
	c.mu.Lock()
	c.ended = true
	sessions := c.sessions
	c.sessions = map[*session]struct{}{}
	s := c.net.Swap(nil)
	c.mu.Unlock()
	for s := range sessions {
		s.kill()
	}
	if s != nil {
		s.Close()
	}
}

// enter notes a session; false if the container is gone meanwhile.
func (c *container) enter(s *session) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return false
	}
	c.sessions[s] = struct{}{}
	return true
}

// leave forgets a session, and says whether it was there.
func (c *container) leave(s *session) bool {
	c.mu.Lock()
	_, there := c.sessions[s]
	delete(c.sessions, s)
	c.mu.Unlock()
	return there
}

// judge asks the container's present rules.
func (c *container) judge(p policy.Packet) judgement { return c.e.judge(c.rules.Load(), p) }

// judgeAgain ends what would not be allowed now.
func (c *container) judgeAgain() {
	c.mu.Lock()
	live := make([]*session, 0, len(c.sessions))
	for s := range c.sessions {
		live = append(live, s)
	}
	c.mu.Unlock()
	// Of many conversations with one destination one judgement is enough.
	known := map[policy.Packet]Verdict{}
	for _, s := range live {
		if s.packet.Protocol == "" {
			continue // a forward's: the port is open as long as the forward is
		}
		v, there := known[s.packet]
		if !there {
			v = c.judge(s.packet).Verdict
			known[s.packet] = v
		}
		// A route that is gone for the moment ends nothing.
		if v != Allowed && v != NoRoute {
			c.e.counts.cut.Add(1)
			s.kill()
		}
	}
}

// sweep ends datagram conversations that have been silent for too long, and sees to
// connections that last.
func (c *container) sweep(now time.Time) {
	c.mu.Lock()
	var old []*datagrams
	for _, d := range c.datagrams {
		if d.idle(now) {
			old = append(old, d)
		}
	}
	var lasting []func()
	for s := range c.sessions {
		if s.keep != nil && now.Sub(s.since) > brief {
			lasting = append(lasting, s.keep)
			s.keep = nil
		}
	}
	c.mu.Unlock()
	for _, d := range old {
		d.kill()
	}
	for _, keep := range lasting {
		keep()
	}
	c.limits.sweep(now)
}

// flowKey is a datagram conversation as the container sees it; from's port is the
// identifier of an echo request.
type flowKey struct {
	protocol uint8
	from, to netip.AddrPort
}
