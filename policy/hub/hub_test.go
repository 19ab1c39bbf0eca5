package hub

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

// memory is a source that the test writes itself.
type memory struct {
	mu      sync.Mutex // guards what follows
	world   *world
	log     []api.Delta
	kept    api.Revision // changes up to here are compacted
	changed chan struct{}
}

func newMemory() *memory {
	return &memory{world: newWorld(rand.New(rand.NewPCG(1, 1))), changed: make(chan struct{})}
}

func (m *memory) State(context.Context) (*store.State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.world.state(), nil
}

func (m *memory) Changes(_ context.Context, after api.Revision, limit int) ([]api.Delta, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if after < m.kept {
		return nil, store.ErrCompacted
	}
	var out []api.Delta
	for _, d := range m.log {
		if d.Revision > after && len(out) < limit {
			out = append(out, d)
		}
	}
	return out, nil
}

func (m *memory) Changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

// commit makes what change says the next revision.
func (m *memory) commit(change func(w *world, d *api.Delta)) api.Revision {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.world.revision++
	d := api.Delta{Revision: m.world.revision}
	change(m.world, &d)
	m.log = append(m.log, d)
	close(m.changed)
	m.changed = make(chan struct{})
	return d.Revision
}

func (m *memory) allow(src, dst policy.AppID) api.Revision {
	return m.commit(func(w *world, d *api.Delta) {
		p := policy.Policy{Source: src, Destination: dst, Protocol: policy.TCP, Ports: policy.PortRange{Start: 1, End: 1}}
		w.policies[p] = true
		d.PoliciesAdded = append(d.PoliciesAdded, api.FromDomain(p))
	})
}

func (m *memory) start(cell string, app policy.AppID) api.Revision {
	return m.commit(func(w *world, d *api.Delta) {
		w.counter++
		e := api.Endpoint{Cell: cell, Container: fmt.Sprintf("%s-%d", app, w.counter), App: app, Incarnation: w.counter}
		w.endpoints[placeOf(e)] = e
		d.EndpointsSet = append(d.EndpointsSet, e)
	})
}

// clock is read by the hub and moved by the test.
type clock struct {
	mu  sync.Mutex // guards now
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

type bench struct {
	*testing.T
	m     *memory
	h     *Hub
	clock *clock
}

// run starts a hub over m that beats only when there is something to say.
func run(t *testing.T, m *memory, opt Options) *bench {
	t.Helper()
	c := &clock{now: time.Unix(1_000_000, 0)}
	if opt.Heartbeat == 0 {
		opt.Heartbeat = time.Hour
	}
	if opt.JudgeEvery == 0 {
		opt.JudgeEvery = time.Hour // the test judges
	}
	opt.Now = c.Now
	opt.FloorEvery = time.Millisecond
	h, err := New(t.Context(), m, opt)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return &bench{T: t, m: m, h: h, clock: c}
}

func (b *bench) watch(cell string, epoch api.Epoch, after api.Revision) *Watcher {
	w := b.h.Watch(cell, epoch, after)
	b.Cleanup(w.Close)
	return w
}

func (b *bench) next(w *Watcher) api.Event {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 10*time.Second)
	defer cancel()
	e, err := w.Next(ctx)
	if err != nil {
		b.Fatalf("cell %s: %v", w.cell, err)
	}
	return e
}

// owes reports whether there is anything to send.
func (w *Watcher) owes() bool {
	w.h.mu.Lock()
	defer w.h.mu.Unlock()
	return w.resync || w.greet || w.refloor || len(w.pending) > 0
}

// until takes events until done says so.
func (b *bench) until(w *Watcher, done func(e api.Event) bool) api.Event {
	b.Helper()
	for {
		e := b.next(w)
		if done(e) {
			return e
		}
	}
}

func (b *bench) ack(cell string, rev api.Revision) {
	b.Helper()
	if err := b.h.Ack(cell, api.Ack{Epoch: "e", Revision: rev}); err != nil {
		b.Fatal(err)
	}
}

func revisionOf(e api.Event) api.Revision {
	switch {
	case e.Snapshot != nil:
		return e.Snapshot.Revision
	case e.Delta != nil:
		return e.Delta.Revision
	}
	return e.Heartbeat.Revision
}

func floorOf(e api.Event) api.Revision {
	switch {
	case e.Snapshot != nil:
		return e.Snapshot.Floor
	case e.Delta != nil:
		return e.Delta.Floor
	}
	return e.Heartbeat.Floor
}

func TestChangeReachesWhomItConcernsOnly(t *testing.T) {
	m := newMemory()
	m.start("a", "web")
	m.start("b", "db")
	m.start("c", "other")
	b := run(t, m, Options{})
	a, c := b.watch("a", "", 0), b.watch("c", "", 0)
	if e := b.next(a); e.Snapshot == nil || len(e.Snapshot.Endpoints) != 0 {
		t.Fatalf("first event of a: %+v, want a snapshot that knows of no other cell's endpoint", e)
	}
	b.next(c)
	rev := m.allow("web", "db")
	e := b.next(a)
	if e.Delta == nil || e.Delta.Revision != rev || len(e.Delta.PoliciesAdded) != 1 || len(e.Delta.EndpointsSet) != 1 {
		t.Fatalf("a got %+v, want the policy and db's endpoint at revision %d", e.Delta, rev)
	}
	if c.owes() {
		t.Error("c is owed a change that does not concern it")
	}
}

func TestResume(t *testing.T) {
	m := newMemory()
	m.start("a", "web")
	m.start("b", "db")
	b := run(t, m, Options{Keep: 4})
	w := b.watch("a", "", 0)
	base := revisionOf(b.next(w))

	tests := []struct {
		name     string
		epoch    api.Epoch
		after    func(now api.Revision) api.Revision
		snapshot bool
	}{
		{"nothing missed", "e", func(now api.Revision) api.Revision { return now }, false},
		{"one missed", "e", func(now api.Revision) api.Revision { return now - 1 }, false},
		{"another epoch", "x", func(now api.Revision) api.Revision { return now }, true},
		{"no epoch", "", func(now api.Revision) api.Revision { return now }, true},
		{"from the future", "e", func(now api.Revision) api.Revision { return now + 1 }, true},
		{"before the hub's time", "e", func(api.Revision) api.Revision { return base - 1 }, true},
	}
	now := m.allow("web", "db")
	b.until(w, func(e api.Event) bool { return revisionOf(e) == now })
	for _, tt := range tests {
		e := b.next(b.watch("a", tt.epoch, tt.after(now)))
		if got := e.Snapshot != nil; got != tt.snapshot {
			t.Errorf("%s: %+v, want a snapshot: %v", tt.name, e, tt.snapshot)
		}
		if revisionOf(e) != now {
			t.Errorf("%s: revision %d, want %d", tt.name, revisionOf(e), now)
		}
	}

	// History is bounded: with Keep 4, at most 8 changes are there to resume from.
	w = b.watch("a", "e", now)
	b.next(w)
	var last api.Revision
	for range 20 {
		last = m.start("a", "web")
	}
	b.until(w, func(e api.Event) bool { return revisionOf(e) == last })
	if e := b.next(b.watch("a", "e", now)); e.Snapshot == nil {
		t.Errorf("20 changes back: %+v, want a snapshot", e)
	}
	if e := b.next(b.watch("a", "e", last-3)); e.Delta == nil {
		t.Errorf("3 changes back: %+v, want a delta", e)
	}
}

// A cell that takes nothing owes no memory and delays nobody: when it is back,
// it gets one delta for what it can still be told so, else a snapshot.
func TestSlowWatcher(t *testing.T) {
	m := newMemory()
	m.start("slow", "web")
	m.start("quick", "web")
	b := run(t, m, Options{Pending: 8})
	slow, quick := b.watch("slow", "", 0), b.watch("quick", "", 0)
	b.next(slow)
	b.next(quick)

	grow := func(n int) (last api.Revision) {
		for range n {
			last = m.allow("web", policy.AppID(fmt.Sprintf("db-%d", m.Revision())))
			b.until(quick, func(e api.Event) bool { return revisionOf(e) == last })
		}
		return last
	}
	last := grow(5)
	if e := b.next(slow); e.Delta == nil || e.Delta.Revision != last || len(e.Delta.PoliciesAdded) != 5 {
		t.Errorf("after 5 changes: %+v, want them in one delta of revision %d", e.Delta, last)
	}
	last = grow(20)
	if e := b.next(slow); e.Snapshot == nil || e.Snapshot.Revision != last || len(e.Snapshot.Policies) != 25 {
		t.Errorf("after 20 more: %+v, want a snapshot of revision %d with 25 policies", e, last)
	}
	if got := b.h.Counts().Dropped; got != 1 {
		t.Errorf("%d runs of changes were dropped, want 1", got)
	}
}

func (m *memory) Revision() api.Revision {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.world.revision
}

func TestNewWatchEndsTheOldOne(t *testing.T) {
	b := run(t, newMemory(), Options{})
	old := b.watch("a", "", 0)
	b.next(old)
	b.next(b.watch("a", "", 0))
	if _, err := old.Next(t.Context()); !errors.Is(err, ErrSuperseded) {
		t.Errorf("old watch: %v, want %v", err, ErrSuperseded)
	}
	if got := b.h.Watchers(); got != 1 {
		t.Errorf("%d watchers, want 1", got)
	}
	old.Close()
	if s := b.h.Status("a"); !s.Watching {
		t.Error("closing the old watch ended the new one")
	}
}

func TestRunEndsWatches(t *testing.T) {
	h, err := New(t.Context(), newMemory(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	w := h.Watch("a", "", 0)
	if _, err := w.Next(t.Context()); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := w.Next(context.Background())
		ended <- err
	}()
	stop()
	if err := <-ended; !errors.Is(err, ErrClosed) {
		t.Errorf("open watch: %v, want %v", err, ErrClosed)
	}
	<-done
	if _, err := h.Watch("a", "", 0).Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("watch after the end: %v, want %v", err, ErrClosed)
	}
	if got := h.Watchers(); got != 0 {
		t.Errorf("%d watchers are left", got)
	}
}

func TestHeartbeatOfAnIdleStream(t *testing.T) {
	m := newMemory()
	b := run(t, m, Options{Heartbeat: time.Millisecond})
	w := b.watch("a", "", 0)
	b.next(w)
	rev := m.start("b", "x") // concerns a in nothing
	b.until(w, func(e api.Event) bool {
		if e.Delta != nil {
			t.Errorf("a was sent %+v", e.Delta)
		}
		return revisionOf(e) == rev
	})
}

// The hub that fell behind the store's history starts over, and its watchers too.
func TestCompactedHistory(t *testing.T) {
	m := newMemory()
	m.start("a", "web")
	b := run(t, m, Options{})
	w := b.watch("a", "", 0)
	b.next(w)
	m.mu.Lock()
	m.kept = m.world.revision + 1
	m.mu.Unlock()
	rev := m.allow("web", "db")
	e := b.next(w)
	if e.Snapshot == nil || e.Snapshot.Revision != rev {
		t.Fatalf("got %+v, want a snapshot of revision %d", e, rev)
	}
	if diff := cmp.Diff(1, len(e.Snapshot.Policies)); diff != "" {
		t.Errorf("policies (-want +got):\n%s", diff)
	}
}

// The cell waits for the revision of its own list even when the list's change
// brought nothing that concerns it, and even before the hub has come to it.
func TestTell(t *testing.T) {
	m := newMemory()
	b := run(t, m, Options{})
	w := b.watch("a", "", 0)
	b.next(w)
	rev := m.Revision() + 1
	b.h.Tell("a", rev)
	m.start("b", "x")
	if e := b.next(w); revisionOf(e) != rev {
		t.Errorf("told %d, want %d", revisionOf(e), rev)
	}
	b.h.Tell("a", rev)
	if w.owes() {
		t.Error("the cell is to be told a revision that it was told before")
	}
}

// A cell that starts the first container of an app that nobody has a policy with
// waits for nobody: the floor comes with the change, or right behind it when the
// cell asks late.
func TestTellBringsTheFloor(t *testing.T) {
	for _, late := range []bool{false, true} {
		m := newMemory()
		b := run(t, m, Options{})
		w := b.watch("a", "", 0)
		b.next(w)
		rev := m.Revision() + 1
		if !late {
			b.h.Tell("a", rev)
		}
		m.start("a", "x")
		e := b.next(w)
		if late {
			b.h.Tell("a", rev)
			e = b.next(w)
		}
		floor := api.Revision(0)
		switch {
		case e.Delta != nil:
			floor = e.Delta.Floor
		case e.Heartbeat != nil:
			floor = e.Heartbeat.Floor
		}
		if floor != rev {
			t.Errorf("late %v: floor %d, want %d: %+v", late, floor, rev, e)
		}
	}
}
