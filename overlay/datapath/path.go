package datapath

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"tulle/overlay/fib"
	"tulle/overlay/flow"
	"tulle/overlay/tun"
	"tulle/overlay/udp"
	"tulle/overlay/vxlan"
	"tulle/policy"
	"tulle/policy/table"
)

// Errors of Attach.
var (
	ErrClosed   = errors.New("data path is closed")
	ErrAttached = errors.New("address is attached already")
	ErrAddress  = errors.New("address is not a container's of this cell's lease")
)

// Path is the data path of one cell. Its methods may be called from any goroutine.
type Path struct {
	fib      *fib.Table
	policies *table.Table
	reach    *table.Table
	flows    *flow.Table
	conn     udp.Conn
	conns    []udp.Conn // that VXLAN is sent from: conn, and those beside it
	tunnel   Tunnel
	log      *slog.Logger
	limits   Limits
	mtu      int
	vni      uint32
	mac      vxlan.MAC
	gateway  netip.Addr // the cell's own overlay address
	gateway6 netip.Addr // and its twin
	only4    bool
	self     netip.Prefix

	resolver      func(*fib.Local, netip.AddrPort, []byte)
	resolverAddr  netip.Addr
	resolverAddr6 netip.Addr
	outside       Outside

	started  atomic.Bool
	verdicts atomic.Pointer[Verdicts]    // nil: nobody is told
	devices  atomic.Pointer[[]*endpoint] // by slot; a free one is nil
	answers  answerLimit
	probes   *prober
	awake    chan struct{} // capacity 1: a way is used for the first time; nil: nobody waits
	cut      atomic.Uint64
	// undelivered has the drops of Deliver and Reply.
	undelivered counters
	in          *ingress

	tunnelMu sync.Mutex // guards inside
	inside   *ingress   // of what comes through Tunnel, in its goroutines

	mu       sync.Mutex // guards what follows, attaching and detaching
	closed   bool
	attached map[netip.Addr]*endpoint
	retired  Traffic // egress of endpoints that are gone

	controlMu sync.Mutex // guards control; taken after mu, if both
	control   *worker    // of cuts and Reply

	begun    time.Time
	paceTime time.Duration
	stop     chan struct{}
	wg       sync.WaitGroup
}

// endpoint is an attached container: its device and the goroutine that reads it.
type endpoint struct {
	addr        netip.Addr
	incarnation uint64
	slot        int
	dev         tun.Device
	udpOffload  bool
	given       atomic.Int32  // super-packets, not accounted for yet by pace
	seen        atomic.Uint32 // the tick behind the one in which it last sent; 0: never
	w           *egress
	done        chan struct{} // closed when the reader, if it was started, has ended
	running     bool          // guarded by Path.mu
}

// New makes a Path. It receives from the socket at once, so that peers' frames do
// not queue up, and drops them until Start.
func New(o Options) (*Path, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	snap := o.FIB.Load()
	p := &Path{
		fib: o.FIB, policies: o.Policies, reach: o.Reach, flows: flow.New(o.Limits.Flow),
		conn: o.Conn, tunnel: o.Tunnel, log: o.Log, limits: o.Limits, mtu: o.MTU, vni: o.VNI,
		self: snap.Self(), gateway: snap.Gateway(), gateway6: fib.Twin(snap.Gateway()), only4: o.IPv4Only, mac: vxlan.MACFor(snap.Gateway()),
		resolver: o.Resolver, resolverAddr: o.ResolverAddr, resolverAddr6: o.ResolverAddr6, outside: o.Outside,
		attached: make(map[netip.Addr]*endpoint),
		begun:    time.Now(),
		paceTime: paceTime(o.Processors),
		stop:     make(chan struct{}),
	}
	p.conns = append([]udp.Conn{o.Conn}, o.Beside...)
	p.devices.Store(new([]*endpoint))
	p.answers.seed = rand.Uint32() | 1
	p.answers.refill(o.Limits.Answers)
	p.control = newWorker(p)
	p.probes = newProber(p)
	p.in = newIngress(p, fib.VXLAN)
	p.in.batch = newBatch()
	p.inside = newIngress(p, fib.WireGuard)
	p.wg.Go(p.in.run)
	if o.Ticks == nil {
		p.awake = make(chan struct{}, 1)
		p.wg.Go(p.probes.run)
	}
	p.wg.Go(func() { p.clock(o.Ticks) })
	return p, nil
}

// Attach gives a container its device: enters it into the fib and, once the Path
// is started, reads and writes the device, which is the Path's from now on. With
// an error the device is still the caller's and nothing is left. ep.Slot is set
// by the Path.
func (p *Path) Attach(ep fib.Local, dev tun.Device) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return ErrClosed
	}
	if p.attached[ep.Addr] != nil {
		return fmt.Errorf("attach %s: %w", ep.Addr, ErrAttached)
	}
	e := &endpoint{
		addr: ep.Addr, incarnation: ep.Incarnation, slot: p.freeSlotLocked(),
		dev: dev, done: make(chan struct{}),
	}
	if o, ok := dev.(interface{ UDPOffload() bool }); ok {
		e.udpOffload = o.UDPOffload()
	}
	e.w = newEgress(p, e)
	ep.Slot = e.slot
	p.setDeviceLocked(e.slot, e)
	entered := false
	p.fib.Update(func(b *fib.Builder) { entered = b.PutLocal(ep) })
	if !entered {
		p.setDeviceLocked(e.slot, nil)
		return fmt.Errorf("attach %s: %w", ep.Addr, ErrAddress)
	}
	p.attached[ep.Addr] = e
	if p.started.Load() {
		p.runLocked(e)
	}
	return nil
}

// Detach ends a container: takes it out of the fib, ends its flows so that their
// other ends read a reset, closes the device and waits for its reader. An address
// that is not attached is no error.
func (p *Path) Detach(addr netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.detachLocked(addr)
}

func (p *Path) detachLocked(addr netip.Addr) {
	e := p.attached[addr]
	if e == nil {
		return
	}
	// First nobody can reach it and no flow of it can be entered; then those that
	// are there end.
	p.fib.Update(func(b *fib.Builder) { b.DeleteLocal(addr) })
	p.cutEndpointLocked(addr, e.incarnation)
	if err := e.dev.Close(); err != nil {
		p.log.Warn("device did not close", "addr", addr, "error", err)
	}
	if e.running {
		<-e.done
	}
	p.setDeviceLocked(e.slot, nil)
	delete(p.attached, addr)
	e.w.c.addTo(&p.retired)
}

// Start begins to judge and answer: the first table of this start is published.
func (p *Path) Start() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.started.Swap(true) {
		return
	}
	for _, e := range p.attached {
		p.runLocked(e)
	}
}

// Close stops all goroutines, closes the devices and the socket, and waits. It is
// idempotent. Flows are not ended: the cell may be about to start again.
func (p *Path) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	close(p.stop)
	var err error
	for _, c := range p.conns {
		err = errors.Join(err, c.Close())
	}
	for _, e := range p.attached {
		err = errors.Join(err, e.dev.Close())
	}
	p.mu.Unlock()
	p.wg.Wait()
	return err
}

func (p *Path) runLocked(e *endpoint) {
	e.running = true
	p.wg.Go(func() {
		defer close(e.done)
		e.w.run()
	})
}

// freeSlotLocked is the lowest free slot.
func (p *Path) freeSlotLocked() int {
	devices := *p.devices.Load()
	for i, e := range devices {
		if e == nil {
			return i
		}
	}
	return len(devices)
}

// setDeviceLocked publishes the devices with one changed.
func (p *Path) setDeviceLocked(slot int, e *endpoint) {
	old := *p.devices.Load()
	next := make([]*endpoint, max(len(old), slot+1))
	copy(next, old)
	next[slot] = e
	p.devices.Store(&next)
}

// device is the attached container that a fib entry means, or nil if it is gone.
func (p *Path) device(l *fib.Local) *endpoint {
	devices := *p.devices.Load()
	if l.Slot < 0 || l.Slot >= len(devices) {
		return nil
	}
	e := devices[l.Slot]
	if e == nil || e.addr != l.Addr || e.incarnation != l.Incarnation {
		return nil
	}
	return e
}

// clock ticks once a second until Close.
func (p *Path) clock(ticks <-chan time.Time) {
	start := time.Now()
	if ticks == nil {
		t := time.NewTicker(time.Second)
		defer t.Stop()
		ticks = t.C
	}
	for {
		select {
		case <-ticks:
			p.Tick(uint32(time.Since(start) / time.Second))
		case <-p.stop:
			return
		}
	}
}

// Tick sets the Path's clock, in seconds since any beginning: flows expire and
// limits refill. The Path calls it itself, unless Options.Ticks is a test's.
func (p *Path) Tick(now uint32) {
	p.flows.Tick(now)
	p.answers.refill(p.limits.Answers)
	p.probes.tick()
}

// Pair is a source and a destination tag.
type Pair struct{ Src, Dst policy.Tag }
