package dns

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Address is where containers ask.
var Address = netip.AddrPortFrom(netip.AddrFrom4([4]byte{169, 254, 0, 2}), 53)

// DefaultResolvConf is where a host lists its resolvers (resolv.conf(5)).
const DefaultResolvConf = "/etc/resolv.conf"

// DefaultInternalDomains are the names that belong to the platform.
var DefaultInternalDomains = []string{"apps.internal"}

// Defaults of Options.
const (
	DefaultTimeout   = 2 * time.Second
	DefaultPatience  = 5 * time.Second
	DefaultWorkers   = 64
	DefaultQueue     = 1024
	DefaultPerSource = 128
)

// Options say whom to ask and how much to keep waiting at once. The zero value
// of each field means its default.
type Options struct {
	// Upstreams are asked in this order. Nil: those of ResolvConf, read again
	// whenever the file changes.
	Upstreams  []netip.AddrPort
	ResolvConf string

	// Overlay is the containers' network. A resolver inside it, or the
	// forwarder's own address, is refused as an upstream: asking it would be
	// asking ourselves, or a container.
	Overlay netip.Prefix

	InternalDomains []string

	Timeout   time.Duration // for one resolver, before the next is asked
	Patience  time.Duration // for one query from Submit on: by then its asker has given up
	Workers   int           // queries in the air at once
	Queue     int           // queries waiting for a worker
	PerSource int           // queries of one container, waiting or in the air

	Log *slog.Logger
}

func (o *Options) setDefaults() {
	if o.ResolvConf == "" {
		o.ResolvConf = DefaultResolvConf
	}
	if o.InternalDomains == nil {
		o.InternalDomains = DefaultInternalDomains
	}
	o.Timeout = cmp.Or(o.Timeout, DefaultTimeout)
	o.Patience = cmp.Or(o.Patience, DefaultPatience)
	o.Workers = cmp.Or(o.Workers, DefaultWorkers)
	o.Queue = cmp.Or(o.Queue, DefaultQueue)
	o.PerSource = cmp.Or(o.PerSource, DefaultPerSource)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
}

// Forwarder passes queries on. Its methods may be called from any goroutine.
type Forwarder struct {
	timeout   time.Duration
	patience  time.Duration
	perSource int
	internal  []string // canonical
	upstreams *upstreams
	counters  counters

	queue  chan query
	ctx    context.Context
	cancel context.CancelFunc
	wait   sync.WaitGroup

	mu      sync.Mutex
	pending map[netip.Addr]int // guarded by mu: queries of each container that are not answered
}

// query is one question on its way through the forwarder.
type query struct {
	from     netip.Addr
	message  []byte
	reply    func([]byte)
	deadline time.Time
}

// New starts a forwarder's workers. Close ends them.
func New(o Options) *Forwarder {
	o.setDefaults()
	ctx, cancel := context.WithCancel(context.Background())
	f := &Forwarder{
		timeout:   o.Timeout,
		patience:  o.Patience,
		perSource: o.PerSource,
		upstreams: newUpstreams(o),
		queue:     make(chan query, o.Queue),
		ctx:       ctx,
		cancel:    cancel,
		pending:   make(map[netip.Addr]int),
	}
	for _, d := range o.InternalDomains {
		f.internal = append(f.internal, dns.CanonicalName(d))
	}
	for range o.Workers {
		f.wait.Go(f.work)
	}
	return f
}

// Submit hands over a query that the container at from sent, as it stood in
// the datagram. message belongs to the forwarder from now on. reply is called
// with the answer, whose bytes are then reply's own, unless the query is
// dropped. Submit reports whether the query was taken.
func (f *Forwarder) Submit(from netip.Addr, message []byte, reply func([]byte)) bool {
	f.counters.queries.Add(1)
	if !f.admit(from) {
		f.counters.overSource.Add(1)
		return false
	}
	select {
	case f.queue <- query{from, message, reply, time.Now().Add(f.patience)}:
		return true
	default:
		f.release(from)
		f.counters.overQueue.Add(1)
		return false
	}
}

// Close gives up what is in the air and returns when no worker is left, so no
// reply is called after it. It is idempotent.
func (f *Forwarder) Close() error {
	f.cancel()
	f.wait.Wait()
	return nil
}

func (f *Forwarder) work() {
	for {
		select {
		case <-f.ctx.Done():
			return
		case q := <-f.queue:
			answer := f.answer(q)
			f.release(q.from)
			if answer != nil && f.ctx.Err() == nil {
				q.reply(answer)
			}
		}
	}
}

// admit counts one more query of a container, or refuses it: without a limit
// one container whose names never resolve would hold every worker.
func (f *Forwarder) admit(from netip.Addr) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pending[from] >= f.perSource {
		return false
	}
	f.pending[from]++
	return true
}

func (f *Forwarder) release(from netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pending[from]--; f.pending[from] == 0 {
		delete(f.pending, from)
	}
}
