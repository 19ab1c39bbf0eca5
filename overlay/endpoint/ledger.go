package endpoint

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"

	"tulle/overlay/control"
	"tulle/policy"
	"tulle/policy/api"
)

// Errors callers branch on.
var (
	// ErrExists: the container has an endpoint already.
	ErrExists = errors.New("the container is attached already")
	// ErrNotFound: it has none.
	ErrNotFound = errors.New("no such container")
	// ErrNoLease: there is no lease to take an address from.
	ErrNoLease = errors.New("the cell has no lease")
	// ErrInUse: the lease cannot change while endpoints have addresses of it.
	ErrInUse = errors.New("endpoints are attached")
)

const (
	// gap is what counters skip when a crash tore something off the journal:
	// more than can have been on its way to the disk.
	gap = 1 << 16
	// sequenceBlock is how many sequence numbers one record reserves.
	sequenceBlock = 1 << 10
	// rewriteAfter is the least length at which a journal is begun anew.
	rewriteAfter = 4096
)

// Options of a Ledger.
type Options struct {
	Dir string               // of the state; made if it is not there
	Now func() time.Duration // a clock that never goes back; for resting addresses
	Log *slog.Logger
}

// Ledger is the journal and what it says. Its methods may be called from any
// goroutine; those that return an error are durable when they return nil.
type Ledger struct {
	now func() time.Duration
	log *slog.Logger
	j   *journal

	mu        sync.Mutex // guards the fields below; held over an fsync only to begin the journal anew or reserve numbers
	lease     *Lease
	pool      *Pool // nil without a lease
	counter   uint32
	sequence  uint64 // the next one
	reserved  uint64 // all below may be used
	endpoints map[string]Endpoint
	// behind: the journal lacks an end that could not be written, and cannot take what
	// comes after it: the same container again, or another at its address.
	behind bool
}

// Open reads the journal in o.Dir, or begins one, and locks the directory.
func Open(o Options) (*Ledger, error) {
	j, records, torn, err := openJournal(o.Dir)
	if err != nil {
		return nil, err
	}
	l := &Ledger{now: o.Now, log: o.Log, j: j, endpoints: map[string]Endpoint{}}
	for i, r := range records {
		if err := l.replay(r, i == 0); err != nil {
			return nil, errors.Join(fmt.Errorf("journal in %s: line %d: %w", o.Dir, i+1, err), j.close())
		}
	}
	if torn > 0 {
		l.log.Warn("journal ends in the middle of a record, which nobody was answered", "bytes", torn)
		if l.counter > math.MaxUint32-gap {
			return nil, errors.Join(errCounter, j.close())
		}
		l.counter += gap
		l.reserved += gap
	}
	l.sequence = l.reserved
	if err := l.rewrite(); err != nil {
		return nil, errors.Join(err, j.close())
	}
	return l, nil
}

var errCounter = errors.New("the incarnation counter is used up: remove the journal, and the cell gets a new lease generation")

// replay applies a record as read.
func (l *Ledger) replay(r *record, first bool) error {
	if first != (r.Snapshot != nil) {
		return errors.New("a snapshot stands first and nowhere else")
	}
	switch {
	case r.Snapshot != nil:
		return l.restore(r.Snapshot)
	case r.Lease != nil:
		return l.setLease(*r.Lease)
	case r.Attach != nil:
		return l.claim(*r.Attach)
	case r.App != nil:
		e, ok := l.endpoints[r.App.Container]
		if !ok {
			return fmt.Errorf("app of %q: %w", r.App.Container, ErrNotFound)
		}
		e.AppID = r.App.AppID
		l.endpoints[e.Container] = e
	case r.Ports != nil:
		e, ok := l.endpoints[r.Ports.Container]
		if !ok {
			return fmt.Errorf("ports of %q: %w", r.Ports.Container, ErrNotFound)
		}
		e.Ports = r.Ports.Ports
		l.endpoints[e.Container] = e
	case r.Rules != nil:
		e, ok := l.endpoints[r.Rules.Container]
		if !ok {
			return fmt.Errorf("rules of %q: %w", r.Rules.Container, ErrNotFound)
		}
		e.Rules = r.Rules.Rules
		l.endpoints[e.Container] = e
	case r.Detach != "":
		e, ok := l.endpoints[r.Detach]
		if !ok {
			return fmt.Errorf("detach of %q: %w", r.Detach, ErrNotFound)
		}
		delete(l.endpoints, e.Container)
		l.pool.Put(e.Address, l.now())
	case r.Sequence != 0:
		l.reserved = max(l.reserved, r.Sequence)
	}
	return nil
}

func (l *Ledger) restore(s *snapshot) error {
	if s.Version != version {
		return fmt.Errorf("format %d, this daemon knows %d", s.Version, version)
	}
	l.reserved = s.Sequence
	if s.Lease != nil {
		if err := l.setLease(*s.Lease); err != nil {
			return err
		}
		if err := l.pool.restore(s.Queue, s.Used, l.now()); err != nil {
			return err
		}
	}
	for _, e := range s.Endpoints {
		if err := l.claim(e); err != nil {
			return err
		}
	}
	l.counter = max(l.counter, s.Counter)
	return nil
}

// claim puts a journalled endpoint in its place.
func (l *Ledger) claim(e Endpoint) error {
	if l.pool == nil {
		return ErrNoLease
	}
	if _, ok := l.endpoints[e.Container]; ok {
		return fmt.Errorf("container %q stands twice", e.Container)
	}
	if err := l.pool.Claim(e.Address); err != nil {
		return err
	}
	l.endpoints[e.Container] = e
	l.counter = max(l.counter, e.Counter)
	return nil
}

func (l *Ledger) setLease(lease Lease) error {
	lease.Subnet = lease.Subnet.Masked()
	if l.lease != nil && l.lease.Subnet != lease.Subnet && len(l.endpoints) > 0 {
		return ErrInUse
	}
	if l.lease == nil || l.lease.Subnet != lease.Subnet {
		p, err := NewPool(lease.Subnet)
		if err != nil {
			return err
		}
		l.pool = p
	}
	l.lease = &lease
	return nil
}

// rewrite begins the journal anew. The caller holds mu or is alone.
func (l *Ledger) rewrite() error {
	s := &snapshot{Version: version, Lease: l.lease, Counter: l.counter, Sequence: l.reserved, Endpoints: l.sorted()}
	if l.pool != nil {
		s.Queue, s.Used = l.pool.queue()
	}
	return l.j.rewrite(&record{Snapshot: s})
}

func (l *Ledger) sorted() []Endpoint {
	all := make([]Endpoint, 0, len(l.endpoints))
	for _, e := range l.endpoints {
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b Endpoint) int { return cmp.Compare(a.Container, b.Container) })
	return all
}

// appendLocked writes r and, when the journal has grown long, begins it anew.
// The record must already be applied: a rewrite takes it in.
func (l *Ledger) appendLocked(r *record) (at int64, err error) {
	if l.behind {
		if err := l.rewrite(); err != nil {
			return 0, err
		}
		l.behind = false
		return 0, nil // on the disk already
	}
	if at, err = l.j.append(r); err != nil {
		return 0, err
	}
	if l.j.length() >= max(rewriteAfter, 8*len(l.endpoints)) {
		if err := l.rewrite(); err != nil {
			// The old journal stands, with the record in it.
			l.log.Warn("journal cannot be begun anew", "err", err)
		}
	}
	return at, nil
}

// Lease is the lease as journalled.
func (l *Ledger) Lease() (Lease, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lease == nil {
		return Lease{}, false
	}
	return *l.lease, true
}

// SetLease journals a lease or its renewal. Another subnet than before is
// ErrInUse while endpoints are attached.
func (l *Ledger) SetLease(lease Lease) error {
	l.mu.Lock()
	old, oldPool := l.lease, l.pool
	if err := l.setLease(lease); err != nil {
		l.mu.Unlock()
		return err
	}
	at, err := l.appendLocked(&record{Lease: l.lease})
	if err != nil {
		l.lease, l.pool = old, oldPool
	}
	l.mu.Unlock()
	if err != nil {
		return err
	}
	return l.j.sync(at)
}

// Attach gives e.Container an incarnation and an address: e's own if it has one,
// any otherwise. ErrExists, ErrPoolEmpty, ErrResting and ErrNoAddress are the
// caller's to explain.
func (l *Ledger) Attach(e Endpoint) (Endpoint, error) {
	at, err := l.attach(&e)
	if err != nil {
		return Endpoint{}, err
	}
	if err := l.j.sync(at); err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.endpoints, e.Container)
		l.pool.Put(e.Address, l.now())
		return Endpoint{}, err
	}
	return e, nil
}

func (l *Ledger) attach(e *Endpoint) (at int64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pool == nil {
		return 0, ErrNoLease
	}
	if _, ok := l.endpoints[e.Container]; ok {
		return 0, ErrExists
	}
	if l.counter == math.MaxUint32 {
		return 0, errCounter
	}
	if e.Address.IsValid() {
		err = l.pool.Ask(e.Address, l.now())
	} else {
		e.Address, err = l.pool.Take(l.now())
	}
	if err != nil {
		return 0, err
	}
	l.counter++
	e.Counter = l.counter
	l.endpoints[e.Container] = *e
	if at, err = l.appendLocked(&record{Attach: e}); err != nil {
		delete(l.endpoints, e.Container)
		l.pool.Return(e.Address)
		return 0, err
	}
	return at, nil
}

// SetPorts journals the ports of the host that lead to a container.
func (l *Ledger) SetPorts(container string, ports []control.Port) error {
	return l.change(container, &record{Ports: &portsRecord{Container: container, Ports: ports}}, func(e *Endpoint) { e.Ports = ports })
}

// SetRules journals the rules of a container's own.
func (l *Ledger) SetRules(container string, rules []policy.SecurityRule) error {
	return l.change(container, &record{Rules: &rulesRecord{Container: container, Rules: rules}}, func(e *Endpoint) { e.Rules = rules })
}

// change makes the endpoint what r says, and writes r.
func (l *Ledger) change(container string, r *record, f func(*Endpoint)) error {
	l.mu.Lock()
	e, ok := l.endpoints[container]
	if !ok {
		l.mu.Unlock()
		return ErrNotFound
	}
	old := e
	f(&e)
	l.endpoints[container] = e
	at, err := l.appendLocked(r)
	if err != nil {
		l.endpoints[container] = old
	}
	l.mu.Unlock()
	if err != nil {
		return err
	}
	return l.j.sync(at)
}

// SetApp journals which app the policy server says the container is.
func (l *Ledger) SetApp(container string, id policy.AppID) error {
	l.mu.Lock()
	e, ok := l.endpoints[container]
	if !ok || e.AppID == id {
		l.mu.Unlock()
		if !ok {
			return ErrNotFound
		}
		return nil
	}
	l.mu.Unlock()
	return l.change(container, &record{App: &appRecord{Container: container, AppID: id}}, func(e *Endpoint) { e.AppID = id })
}

// Detach ends the container's endpoint: its address rests from now on. In
// memory it ends even when the journal fails: the container is gone whatever
// the disk says, and after a restart nobody resumes it.
func (l *Ledger) Detach(container string) (Endpoint, error) {
	l.mu.Lock()
	e, ok := l.endpoints[container]
	if !ok {
		l.mu.Unlock()
		return Endpoint{}, ErrNotFound
	}
	delete(l.endpoints, container)
	l.pool.Put(e.Address, l.now())
	at, err := l.appendLocked(&record{Detach: container})
	l.behind = l.behind || err != nil
	l.mu.Unlock()
	if err != nil {
		return e, err
	}
	return e, l.j.sync(at)
}

// Gone says at which revision the control plane took the ends of addrs in.
func (l *Ledger) Gone(addrs []netip.Addr, at api.Revision) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range addrs {
		if l.pool != nil {
			l.pool.Gone(a, at)
		}
	}
}

// Floor is the lowest revision that all concerned cells acknowledged.
func (l *Ledger) Floor(floor api.Revision) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pool != nil {
		l.pool.Floor(floor)
	}
}

// Get is the container's endpoint.
func (l *Ledger) Get(container string) (Endpoint, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, ok := l.endpoints[container]
	return e, ok
}

// List is every endpoint, by container.
func (l *Ledger) List() []Endpoint {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sorted()
}

// Addresses counts the pool: in use, resting, free to take.
func (l *Ledger) Addresses() (inUse, rest, free int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pool == nil {
		return 0, 0, 0
	}
	return l.pool.Counts(l.now())
}

// NextSequence is a number greater than every one before it, also before a crash.
func (l *Ledger) NextSequence() (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sequence+1 >= l.reserved {
		old := l.reserved
		l.reserved = l.sequence + 1 + sequenceBlock
		at, err := l.appendLocked(&record{Sequence: l.reserved})
		if err == nil {
			err = l.j.sync(at)
		}
		if err != nil {
			l.reserved = old
			return 0, err
		}
	}
	l.sequence++
	return l.sequence, nil
}

// Close gives the state directory free. What is journalled stays.
func (l *Ledger) Close() error { return l.j.close() }
