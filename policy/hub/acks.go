package hub

import (
	"context"
	"errors"
	"time"

	"tulle/policy/api"
)

// Why an acknowledgement is refused.
var (
	ErrEpoch  = errors.New("acknowledged another epoch than the store's")
	ErrFuture = errors.New("acknowledged a revision that does not exist yet")
)

// Status is a cell as the hub knows it. The zero value is a cell never heard of.
type Status struct {
	Live     bool         // watching, or heard of within Options.LiveFor
	Watching bool         // has a watch open, here or on another server
	CaughtUp bool         // has acknowledged all that it was sent, and nothing is on its way
	Acked    api.Revision // in force on the cell; the present revision when CaughtUp
	Seen     time.Time    // last sign of life; zero: never
}

// Ack takes a cell's acknowledgement. It is a sign of life in any case.
func (h *Hub) Ack(name string, a api.Ack) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.cellLocked(name)
	c.seen = h.opt.Now()
	h.backLocked(name)
	switch {
	case a.Epoch != h.x.epoch:
		return ErrEpoch
	case a.Revision > h.x.revision:
		return ErrFuture
	case a.Revision > c.acked:
		c.acked = a.Revision
		h.movedLocked(name)
	}
	return nil
}

// Seen notes another sign of life of the cell.
func (h *Hub) Seen(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.cellLocked(name)
	c.seen = h.opt.Now()
	h.backLocked(name)
	if c.watcher == nil {
		h.newsLocked(name)
	}
}

// Status is what is known of one cell.
func (h *Hub) Status(name string) Status {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.cells[name]
	if c == nil {
		return Status{}
	}
	acked, caughtUp := h.reachedLocked(c)
	watching := c.watcher != nil || h.elsewhereLocked(c)
	return Status{
		Live:     watching || h.opt.Now().Sub(c.seen) < h.opt.LiveFor,
		Watching: watching,
		CaughtUp: caughtUp,
		Acked:    acked,
		Seen:     c.seen,
	}
}

// Watchers is the number of open watches.
func (h *Hub) Watchers() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.watching
}

// Lag is how many revisions the slowest watching cell is behind.
func (h *Hub) Lag() api.Revision {
	h.mu.Lock()
	defer h.mu.Unlock()
	var lag api.Revision
	for _, c := range h.cells {
		if c.watcher != nil {
			acked, _ := h.reachedHereLocked(c)
			lag = max(lag, h.x.revision-acked)
		}
	}
	return lag
}

// Floor is the lowest revision in force on the live cells that must know of the
// cell's endpoints; the present revision when there are none.
func (h *Hub) Floor(name string) api.Revision {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.floorLocked(name)
}

// reachedLocked is the revision in force on the cell, by what this server and
// the others know. An acknowledgement is a fact wherever it came in, so the
// newest counts.
func (h *Hub) reachedLocked(c *cell) (rev api.Revision, caughtUp bool) {
	rev, caughtUp = h.reachedHereLocked(c)
	if caughtUp {
		return rev, true
	}
	if h.elsewhereLocked(c) && c.away.reached >= c.owed { // nothing that came since concerns it
		return h.x.revision, true
	}
	return min(max(rev, c.away.reached), h.x.revision), false
}

// reachedHereLocked is what this server knows by itself. A cell that
// acknowledged the last event it had to, and is owed nothing, has the present
// revision: what came since does not concern it.
func (h *Hub) reachedHereLocked(c *cell) (rev api.Revision, caughtUp bool) {
	w := c.watcher
	if w != nil && !w.held && !w.resync && len(w.pending) == 0 && c.acked >= w.sent {
		return h.x.revision, true
	}
	return c.acked, false
}

func (h *Hub) floorLocked(name string) api.Revision {
	floor := h.x.revision
	now := h.opt.Now()
	// A server that has just started knows of nobody: until every live cell had
	// its chance to come back, all count as live.
	grace := now.Sub(h.started) < h.opt.LiveFor
	for other := range h.x.Related(name) {
		c := h.cells[other]
		switch {
		case c == nil && grace:
			return 0
		case c == nil:
		case c.watcher != nil, grace, now.Sub(c.seen) < h.opt.LiveFor, h.elsewhereLocked(c):
			rev, _ := h.reachedLocked(c)
			floor = min(floor, rev)
		}
	}
	return floor
}

// noteFloorLocked is the floor to put into an event for w.
func (h *Hub) noteFloorLocked(w *Watcher) api.Revision {
	w.floor = h.floorLocked(w.cell)
	w.refloor = false
	return w.floor
}

// movedLocked notes that the cell progressed here, which others must know.
func (h *Hub) movedLocked(name string) {
	h.newsLocked(name)
	h.floorsMovedLocked(name)
}

// floorsMovedLocked notes that the cell progressed, which may move the floors of
// those that it is related to, and is what receipts wait for.
func (h *Hub) floorsMovedLocked(name string) {
	h.settleLocked(name)
	h.moved[name] = struct{}{}
	select {
	case h.floors <- struct{}{}:
	default:
	}
}

// tellFloors wakes the watchers whose floor moved: the first at once, then at
// most every Options.FloorEvery, since a change that concerns many cells is
// acknowledged by all of them within moments. Where there are so many that the
// work is felt, it takes at most a fifth of the time.
func (h *Hub) tellFloors(ctx context.Context) {
	pause := time.NewTimer(h.opt.FloorEvery)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.floors:
		}
		start := time.Now()
		h.wakeFloors()
		pause.Reset(max(h.opt.FloorEvery, 4*time.Since(start)))
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
	}
}

// wakeFloors gives the lock back after each cell, so that changes go first.
func (h *Hub) wakeFloors() {
	h.mu.Lock()
	touched := make(map[string]struct{})
	for name := range h.moved {
		for other := range h.x.Related(name) {
			touched[other] = struct{}{}
		}
	}
	clear(h.moved)
	h.mu.Unlock()
	for name := range touched {
		h.wakeFloor(name)
	}
}

func (h *Hub) wakeFloor(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.cells[name]
	if c == nil || c.watcher == nil || c.watcher.refloor {
		return
	}
	if w := c.watcher; h.floorLocked(name) != w.floor {
		w.refloor = true
		w.wake()
	}
}
