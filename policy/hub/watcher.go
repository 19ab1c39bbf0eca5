package hub

import (
	"context"
	"errors"
	"sort"
	"time"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

// Why a watch ended.
var (
	ErrClosed     = errors.New("the watch hub is closed")
	ErrSuperseded = errors.New("the cell opened another watch")
	ErrRevoked    = store.ErrRevoked
)

// Watcher is one cell's open watch. One goroutine at a time may call Next.
type Watcher struct {
	h     *Hub
	cell  string
	woken chan struct{} // capacity 1: there may be something to send

	// Guarded by the hub's mutex.
	pending []*Change    // concern the cell and are not sent yet
	resync  bool         // send a snapshot instead of pending
	held    bool         // the cell is ahead of this hub: say nothing until it has looked
	after   api.Revision // what the cell had in force when the watch was opened
	greet   bool         // say something at once, if only the revision
	told    api.Revision // of the last event
	sent    api.Revision // of the last snapshot or delta: to be acknowledged
	floor   api.Revision // the last found
	refloor bool         // the floor moved: tell it
	verdict uint64       // the last verdict on lost cells that was told
	err     error        // the watch is over

	concern    func(*policy.SecurityGroup) bool // of the security groups; nil: none are told
	groups     map[string]*policy.SecurityGroup // told
	groupsTold uint64                           // as of this change of theirs; 0: never
}

// Watch opens the watch of a cell that has, in force, the given revision of the
// given epoch (0 or "": nothing). An older watch of the cell ends. The caller
// must Close the watcher.
func (h *Hub) Watch(name string, epoch api.Epoch, after api.Revision) *Watcher {
	w := &Watcher{h: h, cell: name, woken: make(chan struct{}, 1), greet: true}
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.cellLocked(name)
	if c.watcher != nil {
		c.watcher.endLocked(ErrSuperseded)
	}
	c.watcher = w
	h.watching++
	c.seen = h.opt.Now()
	h.backLocked(name)
	if h.closed {
		w.endLocked(ErrClosed)
		return w
	}
	w.after = after
	if epoch == h.x.epoch && after > h.x.revision {
		// Another server told it of a change that has not come here yet. An older
		// state would give back what that change took away.
		w.held = true
		c.acked = after
		h.held[w] = struct{}{}
		h.nudgeLocked()
		return w
	}
	w.openLocked(epoch)
	return w
}

// nudgeLocked has the hub look at the source.
func (h *Hub) nudgeLocked() {
	select {
	case h.nudge <- struct{}{}:
	default:
	}
}

// heldNow lists the watchers that are held.
func (h *Hub) heldNow() []*Watcher {
	h.mu.Lock()
	defer h.mu.Unlock()
	held := make([]*Watcher, 0, len(h.held))
	for w := range h.held {
		held = append(held, w)
	}
	return held
}

// release lets watchers go on that were held before the hub last came up to the
// source. A cell that is ahead even now has its revision from another history.
func (h *Hub) release(held []*Watcher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, w := range held {
		if _, still := h.held[w]; still {
			delete(h.held, w)
			w.held = false
			w.openLocked(h.x.epoch)
			w.wake()
		}
	}
}

// openLocked finds out what the cell must be told first.
func (w *Watcher) openLocked(epoch api.Epoch) {
	h, after := w.h, w.after
	c := h.cells[w.cell]
	first := sort.Search(len(h.recent), func(i int) bool { return h.recent[i].revision > after })
	missed := h.recent[first:]
	if epoch != h.x.epoch || after < h.base || after > h.x.revision || len(missed) > h.opt.Pending {
		w.resyncLocked()
		return
	}
	for _, ch := range missed {
		w.oweLocked(ch)
	}
	w.sent = after
	c.acked = after
	h.movedLocked(w.cell)
}

// Next waits for the next event of the cell: what it has to be told, or a
// heartbeat when there was nothing for Options.Heartbeat. It never gives
// back an event twice; an event whose sending failed is lost to this watch.
func (w *Watcher) Next(ctx context.Context) (api.Event, error) {
	beat := time.NewTimer(w.h.opt.Heartbeat)
	defer beat.Stop()
	due := false
	for {
		ev, ok, err := w.take(due)
		if err != nil || ok {
			return ev, err
		}
		select {
		case <-ctx.Done():
			return api.Event{}, ctx.Err()
		case <-w.woken:
		case <-beat.C:
			due = true
		}
	}
}

// take computes what there is to send.
func (w *Watcher) take(due bool) (ev api.Event, ok bool, err error) {
	w.h.mu.Lock()
	defer w.h.mu.Unlock()
	return w.takeLocked(due)
}

func (w *Watcher) takeLocked(due bool) (ev api.Event, ok bool, err error) {
	h := w.h
	if w.err != nil {
		return api.Event{}, false, w.err
	}
	switch {
	case w.held:
		return api.Event{}, false, nil
	case w.resync:
		s := h.x.Snapshot(w.cell)
		w.sent = s.Revision
		w.resync = false
		s.Floor = h.noteFloorLocked(w)
		h.counts.Snapshots++
		ev.Snapshot = s
	case len(w.pending) > 0:
		d := h.x.Delta(w.cell, w.pending)
		w.forgetLocked()
		w.sent = d.Revision
		// What was found last will do, but for the cell that waits for its own
		// change: one that concerns a thousand cells is told at once, and their floors
		// when they have moved.
		if d.Floor, w.refloor = w.floor, false; w.greet {
			d.Floor = h.noteFloorLocked(w)
		}
		h.counts.Deltas++
		ev.Delta = d
	case w.verdict != h.verdict:
		w.verdict = h.verdict
		return api.Event{Liveness: &api.Liveness{Lost: h.lost}}, true, nil
	case due || w.greet:
		ev.Heartbeat = &api.Heartbeat{Revision: h.x.revision, Floor: h.noteFloorLocked(w)}
		h.counts.Heartbeats++
	case w.groupsTold != h.groups.at && w.concern != nil:
		change := w.groupsLocked()
		if change == nil {
			return w.takeLocked(due)
		}
		return api.Event{Groups: change}, true, nil
	case w.refloor:
		w.refloor = false
		ev.Heartbeat = &api.Heartbeat{Revision: h.x.revision, Floor: w.floor}
		h.counts.Heartbeats++
	default:
		return api.Event{}, false, nil
	}
	w.greet, w.told = false, h.x.revision
	return ev, true, nil
}

// Tell has the cell's watch say, as soon as it is so, that it has come to the
// revision, with the floor as it is then: a cell waits for the revision at which its
// endpoints are in force, and known to others, also when there is nobody whom that
// concerns.
func (h *Hub) Tell(name string, rev api.Revision) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c := h.cells[name]; c != nil && c.watcher != nil {
		c.watcher.tellLocked(rev)
	}
}

func (w *Watcher) tellLocked(rev api.Revision) {
	if w.h.x.revision < rev {
		w.h.asked[w] = rev
		return
	}
	delete(w.h.asked, w)
	if w.told < rev || w.floor < rev {
		w.greet = true
		w.wake()
	}
}

// Close ends the watch. It may be called more than once.
func (w *Watcher) Close() {
	w.h.mu.Lock()
	defer w.h.mu.Unlock()
	w.endLocked(ErrClosed)
}

func (w *Watcher) endLocked(err error) {
	if w.err != nil {
		return
	}
	w.err = err
	w.forgetLocked()
	delete(w.h.asked, w)
	delete(w.h.held, w)
	w.h.watching--
	if c := w.h.cells[w.cell]; c.watcher == w {
		c.watcher = nil
		w.h.newsLocked(w.cell)
	}
	w.wake()
}

// oweLocked adds a change that concerns the cell. Too many, and the watcher
// gets a snapshot in their place.
func (w *Watcher) oweLocked(ch *Change) {
	switch n := len(w.pending); {
	case w.resync, w.held: // a held watch will look at what it missed
		return
	case n > 0 && w.pending[n-1] == ch: // EachConcerned may name a cell twice
		return
	case n >= w.h.opt.Pending:
		w.h.counts.Dropped++
		w.forgetLocked()
		w.resync = true
	default:
		w.pending = append(w.pending, ch)
		if ch.Relates() {
			w.h.blurred[w] = struct{}{}
		}
	}
	w.wake()
}

// forgetLocked drops what the watcher is owed, which was sent or will not be.
func (w *Watcher) forgetLocked() {
	w.pending = nil
	delete(w.h.blurred, w)
}

// resyncLocked makes the next event a snapshot: what the cell has is not known,
// so it has acknowledged nothing.
func (w *Watcher) resyncLocked() {
	w.forgetLocked()
	w.resync, w.sent = true, 0
	w.h.cells[w.cell].acked = 0
	w.h.newsLocked(w.cell)
	w.wake()
}

func (w *Watcher) wake() {
	select {
	case w.woken <- struct{}{}:
	default:
	}
}
