package hub

import (
	"context"
	"time"

	"tulle/policy"
	"tulle/policy/api"
)

// Floor is the lowest revision in force on the live cells that must know of the
// cell's endpoints; the present revision when there are none.
func (h *Hub) Floor(name string) api.Revision {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.floorLocked(name, make(floors))
}

// floors remembers what is in force on the cells that host an app while the
// floors of many cells are found: a thousand cells that share one partner look
// at its cells once, not a thousand times.
//
// What it remembers stays true, whatever happens meanwhile: that a cell has
// come to a revision is a fact, and who hosts the app from now on learns of
// nothing that was freed before.
type floors map[policy.AppID]lowest

// lowest is the least revision in force on an app's cells, where that is, and
// the least on the others.
type lowest struct {
	rev  api.Revision
	cell string
	next api.Revision
}

func (l lowest) without(cell string) api.Revision {
	if l.cell == cell {
		return l.next
	}
	return l.rev
}

func (h *Hub) floorLocked(name string, known floors) api.Revision {
	floor := h.x.revision
	for app := range h.x.own[name] {
		for partner := range h.x.partners[app] {
			l, there := known[partner]
			if !there {
				l = h.lowestLocked(partner)
				known[partner] = l
			}
			floor = min(floor, l.without(name))
		}
	}
	return floor
}

func (h *Hub) lowestLocked(app policy.AppID) lowest {
	l := lowest{rev: h.x.revision, next: h.x.revision}
	now := h.opt.Now()
	// A server that has just started knows of nobody: until every live cell had
	// its chance to come back, all count as live.
	grace := now.Sub(h.started) < h.opt.LiveFor
	for name := range h.x.hosts[app] {
		var rev api.Revision
		switch c := h.cells[name]; {
		case c == nil && grace:
		case c == nil:
			continue
		case c.watcher != nil, grace, now.Sub(c.seen) < h.opt.LiveFor, h.elsewhereLocked(c):
			rev, _ = h.reachedLocked(c)
		default:
			continue
		}
		if rev < l.rev {
			l = lowest{rev: rev, cell: name, next: l.rev}
		} else {
			l.next = min(l.next, rev)
		}
	}
	return l
}

// noteFloorLocked is the floor to put into an event for w, as it is now.
func (h *Hub) noteFloorLocked(w *Watcher) api.Revision {
	w.floor = h.floorLocked(w.cell, make(floors))
	w.refloor = false
	return w.floor
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
	known := make(floors)
	for name := range h.touched() {
		h.wakeFloor(name, known)
	}
}

// touched are the cells whose floor may have moved.
func (h *Hub) touched() map[string]struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	cells := h.x.related(h.moved)
	clear(h.moved)
	return cells
}

func (h *Hub) wakeFloor(name string, known floors) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.cells[name]
	if c == nil || c.watcher == nil {
		return
	}
	w := c.watcher
	if floor := h.floorLocked(name, known); floor != w.floor {
		w.floor, w.refloor = floor, true
		w.wake()
	}
}
