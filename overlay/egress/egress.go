package egress

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"tulle/overlay/egress/rules"
	"tulle/overlay/fib"
	"tulle/overlay/netcfg"
	"tulle/overlay/packet"
	"tulle/overlay/trafficlog"
)

// Options is what an Egress is made of.
type Options struct {
	// MTU of the containers' devices.
	MTU int
	// Overlay is the containers' own network: no client of a forward is shown to them
	// with an address of it.
	Overlay netip.Prefix
	// Gateway is who says that something cannot be reached; over IPv6 it is its twin.
	Gateway netip.Addr
	// IPv4Only: containers have no IPv6 address.
	IPv4Only bool
	// Deliver writes a container's device, see datapath.Path.Deliver.
	Deliver func(to netip.Addr, incarnation uint64, pieces ...[]byte) error
	// Services end connections to the resolver's addresses, by port. Resolver6 may be
	// none.
	Resolver, Resolver6 netip.Addr
	Services            map[uint16]Service
	// HostServices are the exact addresses of this host that containers may reach.
	HostServices []HostService
	Limits       Limits
	Traffic      *trafficlog.Log // nil: nothing is logged
	NAT          Recorder        // nil: nothing is recorded
	Log          *slog.Logger

	// For tests; optional. Socket opens sockets, Router asks the kernel's routing.
	Socket func(domain, typ, proto int) (int, error)
	Router Router
	Now    func() time.Time
}

// Service answers a connection that a container opened to the resolver's address.
// It closes conn.
type Service func(who Identity, conn net.Conn)

// Router says what the host's routing makes of an address; netcfg's does.
type Router interface {
	Kind(netip.Addr) (netcfg.RouteKind, error)
}

// Recorder is told of every conversation's outer address, when it has one and when
// it ends.
type Recorder interface {
	Begin(Mapping) (id uint64)
	End(id uint64, at time.Time)
}

// Mapping is what a conversation with the outside looks like there.
type Mapping struct {
	At       time.Time
	Protocol string
	Source   netip.AddrPort // of the host's socket
	Remote   netip.AddrPort
	Identity
}

// Identity is who a container is, for logs and records.
type Identity struct {
	Container string     `json:"container"`
	Address   netip.Addr `json:"address"`
	App       string     `json:"app"`
	AppName   string     `json:"app_name,omitempty"`
	Space     string     `json:"space,omitempty"`
	Org       string     `json:"org,omitempty"`
}

// End is the container as a traffic log has it.
func (i Identity) End() trafficlog.End {
	return trafficlog.End{Container: i.Container, App: i.App, AppName: i.AppName, Space: i.Space, Org: i.Org}
}

// Egress is made by New; its methods may be called from any goroutine.
type Egress struct {
	opt    Options
	router Router
	stop   chan struct{}
	wg     sync.WaitGroup
	close  sync.Once

	judged     atomic.Uint64 // grows whenever a judgement may come out differently
	around     atomic.Pointer[Surroundings]
	containers atomic.Pointer[map[netip.Addr]*container]
	forwards   forwards
	counts     counters
	poller     *poller
	workers    *workers

	mu       sync.Mutex // guards containers' writers, and pingSaid
	pingSaid bool
}

// New makes an Egress that knows no container.
func New(o Options) (*Egress, error) {
	if o.Deliver == nil || o.Log == nil {
		return nil, errors.New("egress: Deliver or Log is missing")
	}
	if o.Socket == nil {
		o.Socket = unix.Socket
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Limits = o.Limits.withDefaults()
	e := &Egress{opt: o, router: o.Router, stop: make(chan struct{})}
	if e.router == nil {
		r, err := netcfg.OpenRouter()
		if err != nil {
			return nil, fmt.Errorf("egress: %w", err)
		}
		e.router = r
	}
	var err error
	if e.poller, err = newPoller(); err != nil {
		return nil, fmt.Errorf("egress: %w", err)
	}
	e.workers = newWorkers()
	e.around.Store(&Surroundings{})
	e.containers.Store(&map[netip.Addr]*container{})
	e.forwards.init(e)
	e.wg.Go(e.sweep)
	return e, nil
}

// Close ends every conversation and waits.
func (e *Egress) Close() {
	e.close.Do(func() {
		close(e.stop)
		e.forwards.closeAll()
		for _, c := range *e.containers.Load() {
			e.Detach(c.who.Address, c.incarnation)
		}
		e.wg.Wait()
		e.poller.close()
		e.workers.close()
		if r, ok := e.router.(*netcfg.Router); ok && e.opt.Router == nil {
			r.Close()
		}
	})
}

// Attach makes a container known: it may say what set allows from now on.
func (e *Egress) Attach(who Identity, incarnation uint64, set *rules.Set) {
	c := &container{e: e, who: who, logged: who.End(), incarnation: incarnation, sessions: map[*session]struct{}{}, datagrams: map[flowKey]*datagrams{}}
	c.rules.Store(set)
	c.limits.init(&e.opt.Limits)
	e.mu.Lock()
	next := maps.Clone(*e.containers.Load())
	former := next[who.Address]
	next[who.Address] = c
	e.containers.Store(&next)
	e.mu.Unlock()
	if former != nil {
		former.end()
	}
}

// Detach ends a container's conversations and closes its forwards, at once.
func (e *Egress) Detach(addr netip.Addr, incarnation uint64) {
	e.mu.Lock()
	c := (*e.containers.Load())[addr]
	if c == nil || c.incarnation != incarnation {
		e.mu.Unlock()
		return
	}
	next := maps.Clone(*e.containers.Load())
	delete(next, addr)
	e.containers.Store(&next)
	e.mu.Unlock()
	e.forwards.release(c.who.Container)
	c.end()
}

// SetRules puts a container's rules in force: new conversations are judged by them
// at once, and those that live and are not allowed any more are ended before it
// returns.
func (e *Egress) SetRules(addr netip.Addr, incarnation uint64, set *rules.Set) {
	if c := e.find(addr); c != nil && c.incarnation == incarnation {
		c.rules.Store(set)
		e.judged.Add(1)
		c.judgeAgain()
	}
}

// SetSurroundings says where cells and their ports are; live conversations are
// judged again.
func (e *Egress) SetSurroundings(s *Surroundings) {
	e.around.Store(s)
	e.judged.Add(1)
	for _, c := range *e.containers.Load() {
		c.judgeAgain()
	}
}

// isResolver reports whether the address is the daemon's own in the containers' world.
func (e *Egress) isResolver(a netip.Addr) bool {
	return a == e.opt.Resolver || a == e.opt.Resolver6 && a.IsValid()
}

func (e *Egress) find(addr netip.Addr) *container { return (*e.containers.Load())[addr] }

// Carry implements datapath.Outside.
func (e *Egress) Carry(ep *fib.Local, h *packet.Header, v *packet.Virtio, p []byte) bool {
	c := e.find(ep.Addr)
	if c == nil || c.incarnation != ep.Incarnation || h.IPv6 && e.opt.IPv4Only {
		return false
	}
	s := c.stack()
	if s == nil {
		return false
	}
	s.Inject(h, v, p)
	return true
}

// sweep ends what has been silent for too long.
func (e *Egress) sweep() {
	t := time.NewTicker(5 * time.Second)
	defer t.Stop()
	for {
		select {
		case <-e.stop:
			return
		case <-t.C:
			now := e.opt.Now()
			for _, c := range *e.containers.Load() {
				c.sweep(now)
			}
			e.forwards.sweep(now)
		}
	}
}
