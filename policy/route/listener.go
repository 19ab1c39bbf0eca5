package route

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

// Subjects of the original.
const (
	subjectRegister   = "service-discovery.register"
	subjectUnregister = "service-discovery.unregister"
	subjectGreet      = "service-discovery.greet"
	subjectStart      = "service-discovery.start"
)

const (
	flushTimeout  = 5 * time.Second
	reconnectWait = time.Second
	maxPending    = 1 << 16 // messages that wait; more are dropped, and told by NATS' error handler
)

// pruneThreshold is what the original tells emitters, whatever its own is.
const pruneThreshold = 120

// Defaults of Options, the original's.
const (
	DefaultStale    = 180 * time.Second
	DefaultInterval = 60 * time.Second
)

// Store is what a Listener needs of a store.
type Store interface {
	Routes(ctx context.Context, f store.RouteFilter) ([]policy.Route, error)
	AddRoutes(ctx context.Context, rs []policy.Route, beside func(policy.AppID) bool) (api.Revision, error)
	RemoveRoutes(ctx context.Context, rs []policy.Route) (api.Revision, error)
}

// Options of a Listener. Zero values are the defaults.
type Options struct {
	Store    Store
	Servers  []string // nats://host:port
	User     string
	Password string
	TLS      *tls.Config // nil: none
	Host     string      // this server's address, as emitters are told
	Index    string      // its number among its like; "0"

	Stale    time.Duration // not heard of for longer: pruned
	Interval time.Duration // between two registrations of an emitter; also between two prunings, and how long there is none after NATS is back

	Now func() time.Time
	Log *slog.Logger
}

// Counts is what came over NATS since the start.
type Counts struct {
	Registers, Unregisters, Greets, Malformed, Pruned uint64
	Connected                                         bool
	Routes                                            int // registered now
}

// Listener hears route emitters. All methods are safe for concurrent use.
type Listener struct {
	opt   Options
	id    string
	flush time.Duration // how long NATS may take to answer
	work  chan struct{} // capacity 1: there is something to store

	mu    sync.Mutex // guards what follows
	table *Table
	// add and remove are on their way to the store: a route is in one of them at most.
	add, remove map[policy.Route]struct{}
	// complained is when it was last said why NATS cannot be had; zero while it is there.
	complained time.Time

	registers, unregisters, greets, malformed, pruned atomic.Uint64
	subscribed, connected                             atomic.Bool
}

// NewListener makes one that hears while Run runs.
func NewListener(o Options) (*Listener, error) {
	if len(o.Servers) == 0 {
		return nil, errors.New("NATS: no server is named")
	}
	o.Stale, o.Interval = cmp.Or(o.Stale, DefaultStale), cmp.Or(o.Interval, DefaultInterval)
	o.Index = cmp.Or(o.Index, "0")
	if o.Stale <= o.Interval {
		return nil, fmt.Errorf("NATS: entries stale after %s would go between two registrations, which are %s apart", o.Stale, o.Interval)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Listener{opt: o, id: o.Index + "-" + uuid.NewString(), flush: flushTimeout, work: make(chan struct{}, 1), table: NewTable(o.Stale, o.Interval),
		add: map[policy.Route]struct{}{}, remove: map[policy.Route]struct{}{}}, nil
}

// Run hears until ctx ends, and returns nil; an error is one that no waiting mends.
func (l *Listener) Run(ctx context.Context) error {
	if err := l.adopt(ctx); err != nil && ctx.Err() == nil {
		l.opt.Log.Warn("registered routes are not read yet", "error", err)
	}
	ended, over := make(chan error, 1), make(chan struct{})
	conn, err := l.connect(ended, over)
	if err != nil {
		return fmt.Errorf("NATS: %w", err)
	}
	defer func() {
		conn.Close()
		<-over
	}()
	prune := time.NewTicker(l.opt.Interval)
	defer prune.Stop()
	var retry <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			return fmt.Errorf("NATS: %w", err)
		case <-prune.C:
			if err := l.adopt(ctx); err != nil && ctx.Err() == nil {
				l.opt.Log.Warn("registered routes are not read", "error", err)
			}
			l.prune()
		case <-l.work:
		case <-retry:
		}
		retry = nil
		if err := l.store(ctx); err != nil && ctx.Err() == nil {
			l.opt.Log.Error("registered routes are not stored; they will be tried again", "error", err)
			retry = time.After(time.Second)
		}
	}
}

// connect tells ended why the connection is over, and closes over when nothing of what
// came over it is taken in any more.
func (l *Listener) connect(ended chan<- error, over chan<- struct{}) (*nats.Conn, error) {
	var itself atomic.Pointer[nats.Conn]
	closed := make(chan struct{})
	o := []nats.Option{
		nats.Name("tulle-policy-server"),
		// Whatever is wrong, a password too, can be mended at the other end.
		nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true), nats.IgnoreAuthErrorAbort(),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) { l.complain(err) }),
		nats.CustomReconnectDelay(func(int) time.Duration {
			// A handshake that fails, of TLS or of NATS, is told nobody else.
			if c := itself.Load(); c != nil {
				l.complain(c.LastError())
			}
			return reconnectWait
		}),
		nats.ConnectHandler(l.arrived), nats.ReconnectHandler(l.arrived),
		nats.DisconnectErrHandler(func(c *nats.Conn, err error) {
			if c.IsClosed() {
				return
			}
			l.mu.Lock()
			l.connected.Store(false)
			l.table.Disconnected()
			l.mu.Unlock()
			l.opt.Log.Warn("NATS is away: no registered route is pruned", "error", err)
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrAuthExpired) || errors.Is(err, nats.ErrAuthRevoked) {
				l.complain(err)
				return
			}
			l.opt.Log.Warn("NATS", "error", err)
		}),
		nats.ClosedHandler(func(c *nats.Conn) {
			select {
			case ended <- cmp.Or(c.LastError(), nats.ErrConnectionClosed):
			default:
			}
			close(closed) // the last of all callbacks
		}),
	}
	if l.opt.User != "" {
		o = append(o, nats.UserInfo(l.opt.User, l.opt.Password))
	}
	if l.opt.TLS != nil {
		o = append(o, nats.Secure(l.opt.TLS))
	}
	conn, err := nats.Connect(strings.Join(l.opt.Servers, ","), o...)
	if err != nil {
		return nil, err
	}
	itself.Store(conn)
	// Subscriptions with handlers have a goroutine each; over one channel a name is
	// unregistered after it was registered, as the emitter did it.
	messages := make(chan *nats.Msg, maxPending)
	go func() {
		defer close(over)
		for {
			select {
			case m := <-messages:
				l.take(m)
			case <-closed:
				return
			}
		}
	}()
	for _, subject := range []string{subjectRegister, subjectUnregister, subjectGreet} {
		if _, err := conn.ChanSubscribe(subject, messages); err != nil {
			conn.Close()
			return nil, fmt.Errorf("subscribe to %s: %w", subject, err)
		}
	}
	// The connection may have come before the subscriptions, or be still to come.
	l.subscribed.Store(true)
	if conn.IsConnected() {
		go l.arrived(conn)
	}
	return conn, nil
}

// arrived tells the emitters that somebody listens, so that they register all.
func (l *Listener) arrived(c *nats.Conn) {
	if !l.subscribed.Load() {
		return // what the emitters send would not be heard yet
	}
	for {
		err := c.FlushTimeout(l.flush) // the server has the subscriptions
		if err == nil {
			err = c.Publish(subjectStart, l.greeting())
		}
		if err == nil {
			break
		}
		if !c.IsConnected() {
			return // away again; its return is another's affair
		}
		// Nobody else would: it is there, and only slow.
		l.opt.Log.Warn("NATS: the start is not told yet", "error", err)
	}
	if l.met(c) {
		l.opt.Log.Info("NATS is there", "server", c.ConnectedUrlRedacted())
	}
}

// met notes that NATS is there, unless it is away again. Who is told that it is
// away comes after: it was so before it is told.
func (l *Listener) met(c *nats.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !c.IsConnected() {
		return false
	}
	l.table.Connected(l.opt.Now())
	l.complained = time.Time{}
	l.connected.Store(true)
	return true
}

// complain says why NATS cannot be had: at once, and then at most once an interval.
func (l *Listener) complain(err error) {
	if err == nil {
		return
	}
	now := l.opt.Now()
	l.mu.Lock()
	due := l.complained.IsZero() || now.Sub(l.complained) >= l.opt.Interval
	if due {
		l.complained = now
	}
	l.mu.Unlock()
	if due {
		l.opt.Log.Warn("NATS cannot be had; it is tried again and again", "servers", l.opt.Servers, "error", err)
	}
}

func (l *Listener) greeting() []byte {
	// Marshalling strings and numbers cannot fail.
	b, _ := json.Marshal(struct {
		ID       string `json:"id"`
		Host     string `json:"host"`
		Interval int    `json:"minimumRegisterIntervalInSeconds"`
		Prune    int    `json:"pruneThresholdInSeconds"`
	}{l.id, l.opt.Host, int(l.opt.Interval / time.Second), pruneThreshold})
	return b
}

func (l *Listener) greet(m *nats.Msg) {
	if m.Reply == "" {
		return
	}
	if err := m.Respond(l.greeting()); err != nil {
		l.opt.Log.Warn("NATS: a greeting is not answered", "error", err)
	}
}

// take is a message's way in.
func (l *Listener) take(m *nats.Msg) {
	switch m.Subject {
	case subjectRegister:
		l.hear(m, true)
		l.registers.Add(1)
	case subjectUnregister:
		l.hear(m, false)
		l.unregisters.Add(1)
	case subjectGreet:
		l.greet(m)
		l.greets.Add(1)
	}
}

// hear takes a registration in, or its end.
func (l *Listener) hear(m *nats.Msg, register bool) {
	routes, bad, err := DecodeMessage(m.Data)
	if err == nil && register && len(routes)+len(bad) == 0 {
		err = errors.New("message without host")
	}
	if err != nil {
		l.malformed.Add(1)
		l.opt.Log.Warn("NATS message is ignored", "subject", m.Subject, "error", err)
		return
	}
	for _, err := range bad {
		l.malformed.Add(1)
		l.opt.Log.Warn("name in a NATS message is ignored", "subject", m.Subject, "error", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if register {
		l.moveLocked(l.table.Register(routes, l.opt.Now()), l.remove, l.add)
	} else {
		l.moveLocked(l.table.Unregister(routes), l.add, l.remove)
	}
}

// moveLocked puts routes on their way to the store.
func (l *Listener) moveLocked(routes []policy.Route, from, to map[policy.Route]struct{}) {
	for _, r := range routes {
		delete(from, r)
		to[r] = struct{}{}
	}
	if len(routes) > 0 {
		select {
		case l.work <- struct{}{}:
		default:
		}
	}
}

func (l *Listener) prune() {
	l.mu.Lock()
	defer l.mu.Unlock()
	gone := l.table.Prune(l.opt.Now())
	l.pruned.Add(uint64(len(gone)))
	for _, r := range gone {
		l.opt.Log.Info("registered route is pruned: nobody registered it again", "route", r.String(), "after", l.opt.Stale)
	}
	l.moveLocked(gone, l.add, l.remove)
}

// adopt takes in what the store has, and forgets what it has not any more: another
// server heard of its end, or the database is another. Whoever registers that again
// is then heard as anew.
func (l *Listener) adopt(ctx context.Context) error {
	routes, err := l.opt.Store.Routes(ctx, store.RouteFilter{})
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	stored := make(map[policy.Route]struct{}, len(routes))
	for _, r := range routes {
		if _, leaving := l.remove[r]; !leaving { // not stored yet
			stored[r] = struct{}{}
		}
	}
	l.table.Adopt(stored, l.add, l.opt.Now())
	return nil
}

// store writes what changed since it was last called, in two transactions at
// most. What fails is on its way again, unless it was overtaken.
func (l *Listener) store(ctx context.Context) error {
	l.mu.Lock()
	add, remove := l.add, l.remove
	l.add, l.remove = map[policy.Route]struct{}{}, map[policy.Route]struct{}{}
	l.mu.Unlock()
	var failed error
	for _, w := range []struct {
		routes map[policy.Route]struct{}
		write  func([]policy.Route) error
		back   *map[policy.Route]struct{}
	}{
		{remove, func(rs []policy.Route) error { _, err := l.opt.Store.RemoveRoutes(ctx, rs); return err }, &l.remove},
		{add, func(rs []policy.Route) error { _, err := l.opt.Store.AddRoutes(ctx, rs, nil); return err }, &l.add},
	} {
		rs := make([]policy.Route, 0, len(w.routes))
		for r := range w.routes {
			rs = append(rs, r)
		}
		if len(rs) == 0 {
			continue
		}
		err := w.write(rs)
		if err == nil {
			continue
		}
		failed = errors.Join(failed, err)
		l.mu.Lock()
		for _, r := range rs {
			_, added := l.add[r]
			_, removed := l.remove[r]
			if !added && !removed {
				(*w.back)[r] = struct{}{}
			}
		}
		l.mu.Unlock()
	}
	return failed
}

// Counts is what came so far.
func (l *Listener) Counts() Counts {
	l.mu.Lock()
	n := l.table.Len()
	l.mu.Unlock()
	return Counts{Registers: l.registers.Load(), Unregisters: l.unregisters.Load(), Greets: l.greets.Load(),
		Malformed: l.malformed.Load(), Pruned: l.pruned.Load(), Connected: l.connected.Load(), Routes: n}
}
