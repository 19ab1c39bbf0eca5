package hub

import (
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

// Acknowledged is the revision up to which every change is known to be in force
// everywhere: on every cell that has a lease, and so may still send and judge by
// what it has, and on every server that a cell may come to next. A cell that is
// silent holds it until its lease ends; one that was not heard of since the start
// of this hub, too.
func (h *Hub) Acknowledged() api.Revision {
	h.mu.Lock()
	defer h.mu.Unlock()
	lowest := h.x.revision
	for _, o := range h.others {
		lowest = min(lowest, o.revision)
	}
	for name, p := range h.x.peers {
		if p.Kind != api.KindTulle {
			continue // what polls acknowledges nothing
		}
		c := h.cells[name]
		if c == nil {
			return 0
		}
		rev, _ := h.reachedLocked(c)
		lowest = min(lowest, rev)
	}
	return lowest
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

// movedLocked notes that the cell progressed here, which others must know.
func (h *Hub) movedLocked(name string) {
	h.newsLocked(name)
	h.floorsMovedLocked(name)
}
