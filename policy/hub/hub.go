package hub

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

// Source is what the hub reads of the store.
type Source interface {
	State(ctx context.Context) (*store.State, error)
	Changes(ctx context.Context, after api.Revision, limit int) ([]api.Delta, error)
	Changed() <-chan struct{}
}

// Options of a Hub. Zero values are the defaults.
type Options struct {
	Heartbeat   time.Duration // of an idle stream; 5 s
	LiveFor     time.Duration // a cell unheard of for longer is not waited for; 90 s
	Keep        int           // changes kept for cells that come back; 4096
	Pending     int           // changes a slow watcher may owe before it gets a snapshot; 1024
	FloorEvery  time.Duration // moved floors are told at most this often; 10 ms
	Exchange    Exchange      // with the hubs of other servers on the store; nil: there are none
	NoticeEvery time.Duration // others are told at most this often; 50 ms
	NoticeAll   time.Duration // and of everything this often; 5 s
	// SilentAfter is how long a cell may give no sign of life before it is lost:
	// its containers are not found by name, and receipts do not wait for it; 30 s,
	// three of a cell's signs of life.
	SilentAfter time.Duration
	JudgeEvery  time.Duration // how often it is looked who fell silent; 1 s
	// Groups has the security groups; nil: cells are told of none. It is asked this
	// often whether they changed; 200 ms.
	Groups      GroupSource
	GroupsEvery time.Duration
	Now         func() time.Time // the clock
	Log         *slog.Logger
}

func (o Options) withDefaults() Options {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&o.Heartbeat, 5*time.Second)
	def(&o.LiveFor, 90*time.Second)
	def(&o.FloorEvery, 10*time.Millisecond)
	def(&o.NoticeEvery, 50*time.Millisecond)
	def(&o.NoticeAll, 5*time.Second)
	def(&o.SilentAfter, 30*time.Second)
	def(&o.JudgeEvery, time.Second)
	def(&o.GroupsEvery, 200*time.Millisecond)
	if o.Keep <= 0 {
		o.Keep = 4096
	}
	if o.Pending <= 0 {
		o.Pending = 1024
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

const (
	changesAtOnce = 256         // read from the store in one go
	retryStore    = time.Second // after an error of the store
)

// Hub keeps an Index in step with the store and tells each watching cell what
// concerns it. All methods are safe for concurrent use.
type Hub struct {
	source  Source
	opt     Options
	started time.Time
	floors  chan struct{} // capacity 1: some cell's progress may have moved a floor
	name    string        // of this hub, for the others
	speak   chan struct{} // capacity 1: others are to be told something
	nudge   chan struct{} // capacity 1: look at the source though it did not call

	mu       sync.Mutex // guards what follows, and the fields of cells and watchers
	x        *Index
	base     api.Revision // recent holds every change after base
	recent   []*Change
	cells    map[string]*cell
	watching int
	moved    map[string]struct{}       // cells that progressed since floors were told
	blurred  map[*Watcher]struct{}     // owed a change that Relates, so every one
	asked    map[*Watcher]api.Revision // to be told when this revision is reached
	held     map[*Watcher]struct{}     // of cells that are ahead of this hub
	news     map[string]struct{}       // cells that others are to be told of
	tellAll  bool                      // of all cells here
	others   map[string]other          // hubs of other servers
	receipts map[*receipt]struct{}     // being waited for
	lost     []string                  // cells judged lost, sorted
	verdict  uint64                    // grows when lost changes; 0: nobody was judged yet
	groups   groups
	counts   Counts
	closed   bool
}

// cell is what is known of one cell since the hub started.
type cell struct {
	watcher *Watcher // nil: not watching
	acked   api.Revision
	seen    time.Time
	owed    api.Revision // of the last change that concerned it, as far as is known
	away    elsewhere    // its watch on another server
}

// Counts is what the hub sent since it started.
type Counts struct {
	Snapshots, Deltas, Heartbeats uint64
	Dropped                       uint64 // runs of changes given up for a snapshot, the watcher being too slow
}

// New reads the source's state. The hub follows it while Run runs.
func New(ctx context.Context, source Source, opt Options) (*Hub, error) {
	state, err := source.State(ctx)
	if err != nil {
		return nil, fmt.Errorf("read state for the watch hub: %w", err)
	}
	opt = opt.withDefaults()
	return &Hub{
		source: source, opt: opt, started: opt.Now(),
		floors: make(chan struct{}, 1), speak: make(chan struct{}, 1), nudge: make(chan struct{}, 1), name: rand.Text(),
		x: NewIndex(state), base: state.Revision,
		cells: make(map[string]*cell), moved: make(map[string]struct{}),
		blurred: make(map[*Watcher]struct{}), asked: make(map[*Watcher]api.Revision),
		held: make(map[*Watcher]struct{}), news: make(map[string]struct{}), others: make(map[string]other),
		receipts: make(map[*receipt]struct{}),
	}, nil
}

// Run follows the source until ctx ends, then ends all watchers with ErrClosed.
// It returns nil.
func (h *Hub) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { h.tellFloors(ctx) })
	wg.Go(func() { h.judgeRegularly(ctx) })
	if h.opt.Groups != nil {
		wg.Go(func() { h.followGroups(ctx) })
	}
	if h.opt.Exchange != nil {
		wg.Go(func() { h.tellOthers(ctx) })
		wg.Go(func() { h.hearOthers(ctx) })
	}
	failing := false
	for ctx.Err() == nil {
		changed := h.source.Changed()
		held := h.heldNow()
		var retry <-chan time.Time
		if err := h.catchUp(ctx); err != nil && ctx.Err() == nil {
			if !failing {
				h.opt.Log.Error("watch hub cannot read the store, watches go on as they are", "error", err)
			}
			failing = true
			retry = time.After(retryStore)
		} else {
			failing = false
			h.release(held)
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-h.nudge:
		case <-retry:
		}
	}
	wg.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for _, c := range h.cells {
		if c.watcher != nil {
			c.watcher.endLocked(ErrClosed)
		}
	}
	for r := range h.receipts {
		r.wake()
	}
	return nil
}

// catchUp takes in all that the source has committed.
func (h *Hub) catchUp(ctx context.Context) error {
	for {
		after := h.Revision()
		changes, err := h.source.Changes(ctx, after, changesAtOnce)
		if errors.Is(err, store.ErrCompacted) {
			h.opt.Log.Warn("watch hub fell behind the store's history and starts from its state", "revision", after)
			return h.reload(ctx)
		}
		if err != nil {
			return fmt.Errorf("read changes after revision %d: %w", after, err)
		}
		if len(changes) == 0 {
			return nil
		}
		for _, d := range changes {
			if err := h.apply(d); err != nil {
				h.opt.Log.Error("watch hub cannot take a change and starts from the store's state", "error", err)
				return h.reload(ctx)
			}
		}
	}
}

func (h *Hub) apply(d api.Delta) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	ch, err := h.x.Apply(d)
	if err != nil {
		return err
	}
	h.recent = append(h.recent, ch)
	if len(h.recent) >= 2*h.opt.Keep {
		// Half is dropped at once, so that the copying costs nothing per change.
		cut := len(h.recent) - h.opt.Keep
		h.base = h.recent[cut-1].revision
		h.recent = append([]*Change(nil), h.recent[cut:]...)
	}
	for w := range h.blurred {
		w.oweLocked(ch)
	}
	all := h.x.EachConcerned(ch, func(name string) {
		if c := h.cells[name]; c != nil {
			c.oweLocked(ch)
		}
	})
	if all {
		for _, c := range h.cells {
			c.oweLocked(ch)
		}
	}
	for w, rev := range h.asked {
		w.tellLocked(rev)
	}
	for _, r := range d.Revoked {
		h.shutLocked(r.Cell)
	}
	h.followLocked(len(ch.peers) > 0)
	return nil
}

// oweLocked notes a change that concerns the cell.
func (c *cell) oweLocked(ch *Change) {
	c.owed = ch.revision
	if c.watcher != nil {
		c.watcher.oweLocked(ch)
	}
}

// reload starts over from the source's state; every watcher gets a snapshot.
func (h *Hub) reload(ctx context.Context) error {
	state, err := h.source.State(ctx)
	if err != nil {
		return fmt.Errorf("read state: %w", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.x.revoked
	h.x = NewIndex(state)
	h.base, h.recent = state.Revision, nil
	for name, at := range h.x.revoked {
		if !at.Equal(before[name]) {
			h.shutLocked(name)
		}
	}
	for _, c := range h.cells {
		c.owed = state.Revision
		if c.watcher != nil {
			c.watcher.resyncLocked()
		}
	}
	h.followLocked(true)
	return nil
}

// Epoch is the store's epoch.
func (h *Hub) Epoch() api.Epoch {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.x.epoch
}

// Revision is the last change that the hub has passed on.
func (h *Hub) Revision() api.Revision {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.x.revision
}

// Concerns reports whether a cell has an app, or one with a policy with it: whether
// it is told of that app's endpoints.
func (h *Hub) Concerns(cell string, app policy.AppID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.x.own[cell][app] > 0 || h.x.partnered(app, cell)
}

// Counts is what was sent so far.
func (h *Hub) Counts() Counts {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.counts
}

// cellLocked is the record of a cell, made when there is none.
func (h *Hub) cellLocked(name string) *cell {
	c := h.cells[name]
	if c == nil {
		c = &cell{owed: h.x.revision} // what concerned it before is not known
		h.cells[name] = c
	}
	return c
}
