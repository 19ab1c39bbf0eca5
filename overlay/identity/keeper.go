package identity

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"tulle/policy/api"
	"tulle/policy/ca"
)

// Clock is the host's time.
type Clock interface {
	Boot() time.Duration // CLOCK_BOOTTIME
	BootID() (string, error)
	Wall() time.Time
}

// Issuer signs; the policy server's client is one.
type Issuer interface {
	Certificate(ctx context.Context, r api.CertificateRequest) (api.Certificate, error)
	Trust(ctx context.Context) (api.Trust, error)
}

// Options of Open.
type Options struct {
	Dir    string // of the pairs; made if it is not there
	Clock  Clock
	Issuer Issuer
	Log    *slog.Logger
	// Renewed is called when a container has another pair, by any goroutine;
	// optional.
	Renewed func(container string)
	// Tick, for tests, replaces the ticks at which all pairs are looked at.
	Tick <-chan time.Time
}

// look is how often pairs are looked at. A timer stands still in suspend, so
// what became due meanwhile is seen that long after the wake-up.
const look = 15 * time.Second

// clockPatience is how long a wall clock that is wrong is left to its keeper.
const clockPatience = 10 * time.Minute

// askers is how many certificates are asked for at once.
const askers = 4

// ErrUnknown: no container of that name has been added.
var ErrUnknown = errors.New("no such container")

// entry is a container.
type entry struct {
	container string
	pair      *Pair         // nil: none yet
	changed   chan struct{} // closed and replaced with each new pair
	asked     bool          // a renewal is wanted whatever its age
	asking    bool          // somebody asks the server right now
	failures  int
	retry     time.Duration // not before, CLOCK_BOOTTIME
	// A fresh one was expired too, by a wall clock that is ahead: another is of no
	// use before, CLOCK_BOOTTIME.
	useless time.Duration
}

// Keeper keeps pairs.
type Keeper struct {
	o      Options
	bootID string
	wake   chan struct{} // capacity 1

	bundleAgain time.Duration // longPause, but in a test

	renewed, failed atomic.Uint64

	mu      sync.Mutex // guards the fields below
	entries map[string]*entry
	found   map[string]*Pair // read from files, not added yet
	trust   string
	trusted chan struct{} // closed and replaced with each change of trust
	fetched bool          // trust came from the server since Open
}

// Open reads the pairs that are in the directory.
func Open(o Options) (*Keeper, error) {
	k := &Keeper{o: o, wake: make(chan struct{}, 1), bundleAgain: longPause, entries: map[string]*entry{}, trusted: make(chan struct{})}
	var err error
	if k.bootID, err = o.Clock.BootID(); err != nil {
		return nil, err
	}
	if k.found, k.trust, err = readAll(o.Dir, o.Log); err != nil {
		return nil, fmt.Errorf("certificates of containers: %w", err)
	}
	return k, nil
}

// Add begins to have a certificate for a container; one that is there stays.
func (k *Keeper) Add(container string) {
	k.mu.Lock()
	if k.entries[container] == nil {
		e := &entry{container: container, pair: k.found[container], changed: make(chan struct{})}
		delete(k.found, container)
		k.entries[container] = e
	}
	k.mu.Unlock()
	k.poke()
}

// Remove forgets a container, its key and its certificate.
func (k *Keeper) Remove(container string) {
	k.mu.Lock()
	e := k.entries[container]
	delete(k.entries, container)
	delete(k.found, container)
	if e != nil {
		close(e.changed) // whoever waits finds nothing
	}
	k.mu.Unlock()
	if err := remove(k.o.Dir, container); err != nil {
		k.o.Log.Warn("key of a container that is gone", "container", container, "err", err)
	}
}

// Prune removes what was read from files and never added.
func (k *Keeper) Prune() {
	k.mu.Lock()
	var gone []string
	for container := range k.found {
		gone = append(gone, container)
	}
	k.mu.Unlock()
	for _, container := range gone {
		k.Remove(container)
	}
}

// Renew wants a new certificate: what it says has changed.
func (k *Keeper) Renew(container string) {
	k.mu.Lock()
	if e := k.entries[container]; e != nil {
		e.asked = true
	}
	k.mu.Unlock()
	k.poke()
}

// Get is a container's pair. It waits for the first one; with fresh also for the
// one after an expired one, as long as ctx allows, and then returns what there is.
func (k *Keeper) Get(ctx context.Context, container string, fresh bool) (Pair, error) {
	for {
		k.mu.Lock()
		e := k.entries[container]
		if e == nil {
			k.mu.Unlock()
			return Pair{}, fmt.Errorf("%s: %w", container, ErrUnknown)
		}
		now := k.now()
		old := e.pair != nil && fresh && e.pair.expired(now) && now.boot >= e.useless
		if old && !e.asking { // what is being asked for is as good
			e.asked = true
		}
		pair, changed := e.pair, e.changed
		k.mu.Unlock()
		if pair != nil && !old {
			return *pair, nil
		}
		k.poke()
		select {
		case <-changed:
		case <-ctx.Done():
			if pair != nil {
				return *pair, nil
			}
			return Pair{}, fmt.Errorf("certificate of %s: %w", container, ctx.Err())
		}
		fresh = false // asked once is enough: a clock that is wrong stays so
	}
}

// Names are the DNS names in a container's certificate; nil: it has none yet.
func (k *Keeper) Names(container string) []string {
	k.mu.Lock()
	var pair *Pair
	if e := k.entries[container]; e != nil {
		pair = e.pair
	}
	k.mu.Unlock()
	if pair == nil {
		return nil
	}
	block, _ := pem.Decode([]byte(pair.Certificate))
	if block == nil {
		return nil
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil
	}
	return cert.DNSNames
}

// RenewAt is when the pair will be renewed, by the wall clock.
func (k *Keeper) RenewAt(container string, p Pair) time.Time {
	now := k.now()
	return now.wall.Add(max(0, p.due(container, k.bootID)-now.boot))
}

// Counts are renewals that succeeded and that failed, since Open.
func (k *Keeper) Counts() (renewed, failed uint64) { return k.renewed.Load(), k.failed.Load() }

// Len is how many containers have a certificate.
func (k *Keeper) Len() (n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, e := range k.entries {
		if e.pair != nil {
			n++
		}
	}
	return n
}

// Earliest is when the first of all certificates expires; zero: there is none.
func (k *Keeper) Earliest() (first time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, e := range k.entries {
		if e.pair != nil && (first.IsZero() || e.pair.NotAfter.Before(first)) {
			first = e.pair.NotAfter
		}
	}
	return first
}

func (k *Keeper) now() moment {
	return moment{bootID: k.bootID, boot: k.o.Clock.Boot(), wall: k.o.Clock.Wall()}
}

func (k *Keeper) poke() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Run renews until ctx ends.
func (k *Keeper) Run(ctx context.Context) {
	tick := k.o.Tick
	if tick == nil {
		t := time.NewTicker(look)
		defer t.Stop()
		tick = t.C
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, askers)
	var again *time.Timer
	for {
		next := k.fetchTrust(ctx)
		for _, e := range k.pending() {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			wg.Go(func() {
				defer func() { <-slots }()
				k.ask(ctx, e)
			})
		}
		if next > 0 {
			if again != nil {
				again.Stop()
			}
			again = time.AfterFunc(next, k.poke)
		}
		select {
		case <-ctx.Done():
			if again != nil {
				again.Stop()
			}
			return
		case <-tick:
		case <-k.wake:
		}
	}
}

// pending takes the entries that are to be asked for now.
func (k *Keeper) pending() []*entry {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.now()
	var list []*entry
	for _, e := range k.entries {
		wanted := e.pair == nil || e.asked || now.boot >= e.pair.due(e.container, k.bootID) || e.pair.expired(now) && now.boot >= e.useless
		if wanted && !e.asking && now.boot >= e.retry {
			e.asking = true
			list = append(list, e)
		}
	}
	return list
}

// ask has one certificate signed and keeps it.
func (k *Keeper) ask(ctx context.Context, e *entry) {
	k.mu.Lock()
	e.asked = false
	k.mu.Unlock()
	pair, trust, err := k.sign(ctx, e.container)
	if k.take(ctx, e, pair, trust, err) && k.o.Renewed != nil {
		k.o.Renewed(e.container)
	}
}

// take keeps what came of asking; it reports whether there is another pair.
func (k *Keeper) take(ctx context.Context, e *entry, pair *Pair, trust string, err error) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	e.asking = false
	if k.entries[e.container] != e || ctx.Err() != nil {
		return false
	}
	now := k.now()
	if err != nil {
		k.failed.Add(1)
		e.failures++
		e.asked = true // the one that is there is no older for it, but may say what holds no more
		wait := pause(e.failures)
		e.retry = now.boot + wait
		time.AfterFunc(wait, k.poke)
		level := slog.LevelDebug // at an attach the registration may be under way still
		if e.failures > 3 {
			level = slog.LevelWarn
		}
		k.o.Log.Log(ctx, level, "certificate not renewed, the one before stays in use", "container", e.container, "has_one", e.pair != nil, "err", err)
		return false
	}
	k.renewed.Add(1)
	e.failures, e.retry = 0, 0
	if pair.expired(now) {
		// This host's wall clock is ahead of the server's, and another one would
		// be no better.
		e.useless = now.boot + clockPatience
		k.o.Log.Warn("the wall clock says that a new certificate has expired; is it right?", "container", e.container, "expires", pair.NotAfter)
	}
	if err := write(k.o.Dir, e.container, pair); err != nil {
		// It serves as long as this process lives.
		k.o.Log.Error("certificate is not kept for the next start", "container", e.container, "err", err)
	}
	e.pair = pair
	close(e.changed)
	e.changed = make(chan struct{})
	k.setTrustLocked(trust)
	if e.asked {
		k.poke() // the one that came may have been signed before
	}
	k.o.Log.Debug("certificate", "container", e.container, "expires", pair.NotAfter)
	return true
}

func (k *Keeper) sign(ctx context.Context, container string) (*Pair, string, error) {
	key, request, err := ca.NewRequest()
	if err != nil {
		return nil, "", err
	}
	issued := k.o.Clock.Boot() // before the answer: rather too old than too young
	got, err := k.o.Issuer.Certificate(ctx, api.CertificateRequest{Container: container, Request: string(request)})
	if err != nil {
		return nil, "", err
	}
	return &Pair{Certificate: got.Certificate, Key: string(key), NotAfter: got.NotAfter,
		BootID: k.bootID, Issued: issued, Life: time.Duration(got.Seconds) * time.Second}, got.Trust, nil
}
