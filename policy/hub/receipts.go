package hub

import (
	"context"
	"maps"
	"slices"
	"sort"
	"time"

	"tulle/policy"
	"tulle/policy/api"
)

// Question is what a receipt is asked for: whether a revision is in force on
// the cells that it concerns.
type Question struct {
	Revision api.Revision
	// Policies, where given, say whom it concerns: the cells that host one of
	// their apps, whether or not the revision changed anything.
	Policies []policy.Policy
	// Everyone counts every cell, concerned by the revision or not.
	Everyone bool
}

// Receipt answers a Question, at the moment at which the waiting ended.
type Receipt struct {
	Revision api.Revision
	Cells    int           // that are counted
	Reached  int           // of them, that have the revision in force
	Took     time.Duration // the wait
	Silent   []SilentCell  // not heard of for Options.SilentAfter, so not waited for; by name
	Late     []string      // heard of, but still on their way; by name
}

// SilentCell is a cell that has not reached a revision and says nothing.
type SilentCell struct {
	Name  string
	Since time.Time // its last sign of life; where there was none, the hub's start
}

// receipt is a Question being waited for.
type receipt struct {
	ask   Question
	woken chan struct{} // capacity 1

	// Guarded by the hub's mutex.
	begun bool                // the hub has come to the revision: cells and left are known
	cells map[string]struct{} // that count
	left  map[string]struct{} // of them, that have not reached the revision
	next  string              // of those, the one that turns silent next when the waiting began
}

// Enforced waits until the revision is in force on every cell that counts and is
// not silent, at most for wait, and tells how far they are. First the hub itself
// has to come to the revision, for which it is given until ctx ends: ErrFuture.
//
// Without Policies, a revision concerns the cells that would be told of its
// change today: one that hosts the apps since then got the change with them.
// Where the change is not remembered any more, every cell counts.
func (h *Hub) Enforced(ctx context.Context, q Question, wait time.Duration) (Receipt, error) {
	r := &receipt{ask: q, woken: make(chan struct{}, 1)}
	start := time.Now()
	enough := time.After(wait)
	h.mu.Lock()
	h.receipts[r] = struct{}{}
	h.beginLocked(r)
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.receipts, r)
	}()
	for waited := false; ; {
		begun, done, next := h.settled(r)
		if done || begun && waited {
			return h.answer(r, start)
		}
		var silence <-chan time.Time
		if next > 0 {
			silence = time.After(next)
		}
		select {
		case <-r.woken:
		case <-silence:
		case <-enough:
			waited = true
		case <-ctx.Done():
			return h.answer(r, start)
		}
	}
}

// settled reports whether the hub has come to the revision, whether there is
// nobody left to wait for, and else how soon the next of them turns silent.
func (h *Hub) settled(r *receipt) (begun, done bool, next time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || !r.begun {
		return r.begun, h.closed, 0
	}
	done = true
	now := h.opt.Now()
	for name := range r.left {
		quiet := now.Sub(h.heardLocked(name))
		if quiet >= h.opt.SilentAfter {
			continue
		}
		done = false
		if left := h.opt.SilentAfter - quiet; next == 0 || left < next {
			next, r.next = left, name
		}
	}
	return true, done, next
}

func (h *Hub) answer(r *receipt, start time.Time) (Receipt, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !r.begun {
		return Receipt{}, ErrFuture
	}
	a := Receipt{
		Revision: r.ask.Revision, Took: time.Since(start),
		Cells: len(r.cells), Reached: len(r.cells) - len(r.left),
	}
	now := h.opt.Now()
	for _, name := range slices.Sorted(maps.Keys(r.left)) {
		if since := h.heardLocked(name); now.Sub(since) >= h.opt.SilentAfter {
			a.Silent = append(a.Silent, SilentCell{name, since})
		} else {
			a.Late = append(a.Late, name)
		}
	}
	return a, nil
}

// heardLocked is the cell's last sign of life. Nobody is silent because the
// server has just started.
func (h *Hub) heardLocked(name string) time.Time {
	if c := h.cells[name]; c != nil && c.seen.After(h.started) {
		return c.seen
	}
	return h.started
}

// beginLocked finds out who counts, once the hub has come to the revision.
func (h *Hub) beginLocked(r *receipt) {
	if r.begun || h.x.revision < r.ask.Revision {
		return
	}
	r.begun = true
	r.cells, r.left = make(map[string]struct{}), make(map[string]struct{})
	// Silk peers acknowledge nothing.
	count := func(name string) {
		if h.x.peers[name].Kind == api.KindTulle {
			r.cells[name] = struct{}{}
		}
	}
	if h.concernsLocked(r.ask, count) {
		for name := range h.x.peers {
			count(name)
		}
	}
	for name := range r.cells {
		if !h.passedLocked(name, r.ask.Revision) {
			r.left[name] = struct{}{}
		}
	}
	r.wake()
}

// concernsLocked calls yield for the cells that the question is about; all is
// true when that is every cell.
func (h *Hub) concernsLocked(q Question, yield func(string)) (all bool) {
	if q.Everyone {
		return true
	}
	if q.Policies != nil {
		return h.x.EachConcerned(&Change{policies: q.Policies}, yield)
	}
	i := sort.Search(len(h.recent), func(i int) bool { return h.recent[i].revision >= q.Revision })
	if i == len(h.recent) || h.recent[i].revision != q.Revision {
		return true
	}
	return h.x.EachConcerned(h.recent[i], yield)
}

// passedLocked reports whether the revision is in force on the cell: it has
// acknowledged it, or it has acknowledged all it was sent and is owed only what
// came later.
func (h *Hub) passedLocked(name string, rev api.Revision) bool {
	c := h.cells[name]
	if c == nil {
		return false
	}
	if reached, _ := h.reachedLocked(c); reached >= rev {
		return true
	}
	w := c.watcher
	return w != nil && !w.held && !w.resync && c.acked >= w.sent && (len(w.pending) == 0 || w.pending[0].revision > rev)
}

// settleLocked takes the cell off the receipts that wait for it.
func (h *Hub) settleLocked(name string) {
	for r := range h.receipts {
		if _, waits := r.left[name]; waits && h.passedLocked(name, r.ask.Revision) {
			delete(r.left, name)
			// Without that one all that are left may be silent.
			if len(r.left) == 0 || name == r.next {
				r.wake()
			}
		}
	}
}

// followLocked takes a change in: a receipt may begin, and a cell whose lease
// ended is counted no more.
func (h *Hub) followLocked(peersMoved bool) {
	for r := range h.receipts {
		h.beginLocked(r)
		if !peersMoved {
			continue
		}
		for name := range r.cells {
			if _, there := h.x.peers[name]; !there {
				delete(r.cells, name)
				delete(r.left, name)
			}
		}
		r.wake()
	}
}

func (r *receipt) wake() {
	select {
	case r.woken <- struct{}{}:
	default:
	}
}
