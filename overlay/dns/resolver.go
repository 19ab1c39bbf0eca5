package dns

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// Where containers ask: Address, and over IPv6 Address6.
var (
	Address  = netip.AddrPortFrom(netip.AddrFrom4([4]byte{169, 254, 0, 2}), 53)
	Address6 = netip.AddrPortFrom(netip.MustParseAddr("fd00:169:254::2"), 53)
)

// DefaultResolvConf is where a host lists its resolvers (resolv.conf(5)).
const DefaultResolvConf = "/etc/resolv.conf"

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
	// resolver's own address, is refused as an upstream: asking it would be
	// asking ourselves, or a container. No name of the outside leads into it, and
	// the names of its addresses are asked of nobody.
	Overlay netip.Prefix
	// Network6 is a /96 in which each overlay address has a twin, that the same
	// container has; not valid: containers have no IPv6.
	Network6 netip.Prefix

	// Names are the internal ones; nil: there are none.
	Names *Names
	// EmptyUnknown answers an internal name that nobody has with an empty NOERROR,
	// as the original does, and not with NXDOMAIN.
	EmptyUnknown bool

	Timeout   time.Duration // for one resolver, before the next is asked
	Patience  time.Duration // for one query from Submit on: by then its asker has given up
	Workers   int           // queries in the air at once
	Queue     int           // queries waiting for a worker
	PerSource int           // queries of one container, waiting or in the air

	Now func() time.Time // the cache's clock
	Log *slog.Logger
}

func (o *Options) setDefaults() {
	if o.ResolvConf == "" {
		o.ResolvConf = DefaultResolvConf
	}
	if o.Names == nil {
		o.Names = NewNames(netip.Prefix{})
	}
	if o.Now == nil {
		o.Now = time.Now
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

// Resolver answers containers. Its methods may be called from any goroutine.
type Resolver struct {
	timeout   time.Duration
	patience  time.Duration
	perSource int
	overlay   netip.Prefix
	network6  netip.Prefix
	names     *Names
	empty     bool
	now       func() time.Time
	log       *slog.Logger
	told      atomic.Int64 // when a malformed query was last logged
	upstreams *upstreams
	cache     cache
	looked    atomic.Int64 // when it was last looked whom to ask, before a cached answer
	streams   streams
	counters  counters

	queue  chan asked
	ctx    context.Context
	cancel context.CancelFunc
	wait   sync.WaitGroup

	mu      sync.Mutex
	pending map[netip.Addr]int // guarded by mu: queries of each container that are not answered
}

// query is one question on its way through the resolver.
type query struct {
	from     netip.Addr
	message  []byte
	reply    func([]byte)
	limit    int // bytes that its transport takes; 0: what UDP does
	deadline time.Time
}

// asked is a query for a worker, read.
type asked struct {
	query
	ask *dns.Msg
}

// New starts a resolver's workers. Close ends them.
func New(o Options) *Resolver {
	o.setDefaults()
	ctx, cancel := context.WithCancel(context.Background())
	r := &Resolver{
		timeout:   o.Timeout,
		patience:  o.Patience,
		perSource: o.PerSource,
		overlay:   o.Overlay,
		network6:  o.Network6,
		names:     o.Names,
		empty:     o.EmptyUnknown,
		now:       o.Now,
		log:       o.Log,
		upstreams: newUpstreams(o),
		queue:     make(chan asked, o.Queue),
		ctx:       ctx,
		cancel:    cancel,
		pending:   make(map[netip.Addr]int),
	}
	r.upstreams.moved = r.cache.clear
	for range o.Workers {
		r.wait.Go(r.work)
	}
	return r
}

// Submit hands over a query that the container at from sent, as it stood in
// the datagram. message belongs to the resolver from now on. reply is called
// with the answer, whose bytes are then reply's own, unless the query is
// dropped: before Submit returns where the answer is known, else by a worker.
// Submit reports whether the query was taken.
func (r *Resolver) Submit(from netip.Addr, message []byte, reply func([]byte)) bool {
	r.counters.queries.Add(1)
	q := query{from: from, message: message, reply: reply}
	answer, ask := r.immediate(q)
	if ask == nil {
		if answer != nil {
			reply(answer)
		}
		return true
	}
	if !r.admit(from) {
		r.counters.overSource.Add(1)
		return false
	}
	q.deadline = time.Now().Add(r.patience)
	select {
	case r.queue <- asked{q, ask}:
		return true
	default:
		r.release(from)
		r.counters.overQueue.Add(1)
		return false
	}
}

// Close gives up what is in the air and returns when no worker is left, so no
// reply is called after it. It is idempotent.
func (r *Resolver) Close() error {
	r.cancel()
	r.wait.Wait()
	return nil
}

func (r *Resolver) work() {
	for {
		select {
		case <-r.ctx.Done():
			return
		case q := <-r.queue:
			answer := r.outside(q.query, q.ask)
			r.release(q.from)
			if answer != nil && r.ctx.Err() == nil {
				q.reply(answer)
			}
		}
	}
}

// admit counts one more query of a container, or refuses it: without a limit
// one container whose names never resolve would hold every worker.
func (r *Resolver) admit(from netip.Addr) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pending[from] >= r.perSource {
		return false
	}
	r.pending[from]++
	return true
}

func (r *Resolver) release(from netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pending[from]--; r.pending[from] == 0 {
		delete(r.pending, from)
	}
}
