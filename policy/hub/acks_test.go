package hub

import (
	"errors"
	"testing"
	"time"

	"tulle/policy/api"
)

// web on a, db on b and c, and a policy between them: a's floor is what b and c
// have in force.
func TestFloorFollowsTheConcernedCells(t *testing.T) {
	m := newMemory()
	m.start("a", "web")
	m.start("b", "db")
	m.start("c", "db")
	m.start("far", "other")
	m.allow("web", "db")
	b := run(t, m, Options{})
	a, wb, wc := b.watch("a", "", 0), b.watch("b", "", 0), b.watch("c", "", 0)
	b.watch("far", "", 0) // never acknowledges, and must not matter
	if got := floorOf(b.next(a)); got != 0 {
		t.Errorf("floor is %d before anybody acknowledged, want 0", got)
	}
	first := revisionOf(b.next(wb))
	b.next(wc)
	b.ack("b", first)
	b.ack("c", first)
	b.until(a, func(e api.Event) bool { return floorOf(e) == first })

	// A new endpoint of a: its floor reaches the new revision with the last of both.
	rev := m.start("a", "web")
	b.until(a, func(e api.Event) bool { return revisionOf(e) == rev && floorOf(e) == first })
	b.until(wb, func(e api.Event) bool { return revisionOf(e) == rev })
	b.until(wc, func(e api.Event) bool { return revisionOf(e) == rev })
	b.ack("b", rev)
	if got := b.h.Floor("a"); got != first {
		t.Errorf("floor is %d with c behind, want %d", got, first)
	}
	b.ack("c", rev)
	b.until(a, func(e api.Event) bool { return floorOf(e) == rev })

	// What concerns neither b nor c holds nobody up.
	rev = m.start("far", "other")
	b.until(b.watch("far", "", 0), func(e api.Event) bool { return revisionOf(e) == rev })
	if got := b.h.Floor("a"); got != rev {
		t.Errorf("floor is %d after a change elsewhere, want %d", got, rev)
	}
}

func TestSilentCellIsNotWaitedForLong(t *testing.T) {
	m := newMemory()
	m.start("a", "web")
	m.start("b", "db")
	m.start("c", "db") // never heard of
	rev := m.allow("web", "db")
	b := run(t, m, Options{LiveFor: 90 * time.Second})
	if got := b.h.Floor("a"); got != 0 {
		t.Errorf("floor is %d right after the start, want 0: nobody had a chance to come back yet", got)
	}
	b.clock.advance(91 * time.Second)
	if got := b.h.Floor("a"); got != rev {
		t.Errorf("floor is %d when nobody came back, want %d", got, rev)
	}

	w := b.watch("b", "", 0)
	b.next(w)
	b.ack("b", rev)
	w.Close()
	next := m.start("a", "web")
	b.until(b.watch("a", "", 0), func(e api.Event) bool { return revisionOf(e) == next })
	if got := b.h.Floor("a"); got != rev {
		t.Errorf("floor is %d with b gone a moment ago, want %d", got, rev)
	}
	b.clock.advance(91 * time.Second)
	if got := b.h.Floor("a"); got != next {
		t.Errorf("floor is %d with b silent for 91 s, want %d", got, next)
	}
}

func TestAck(t *testing.T) {
	m := newMemory()
	rev := m.start("a", "web")
	b := run(t, m, Options{})
	if err := b.h.Ack("a", api.Ack{Epoch: "other", Revision: 1}); !errors.Is(err, ErrEpoch) {
		t.Errorf("another epoch: %v, want %v", err, ErrEpoch)
	}
	if err := b.h.Ack("a", api.Ack{Epoch: "e", Revision: rev + 1}); !errors.Is(err, ErrFuture) {
		t.Errorf("the future: %v, want %v", err, ErrFuture)
	}
	b.ack("a", rev)
	b.ack("a", rev-1) // overtaken on the way
	if got := b.h.Status("a").Acked; got != rev {
		t.Errorf("acknowledged %d, want %d", got, rev)
	}
}

func TestStatusAndLag(t *testing.T) {
	m := newMemory()
	m.start("a", "web")
	rev := m.allow("web", "db")
	b := run(t, m, Options{})
	if got := b.h.Status("a"); got != (Status{}) {
		t.Errorf("never heard of: %+v", got)
	}
	w := b.watch("a", "", 0)
	b.next(w)
	if got := b.h.Lag(); got != rev {
		t.Errorf("lag is %d before the first acknowledgement, want %d", got, rev)
	}
	b.ack("a", rev)
	want := Status{Live: true, Watching: true, CaughtUp: true, Acked: rev, Seen: b.clock.Now()}
	if got := b.h.Status("a"); got != want {
		t.Errorf("caught up: %+v, want %+v", got, want)
	}
	if got := b.h.Lag(); got != 0 {
		t.Errorf("lag is %d when caught up", got)
	}
	b.clock.advance(time.Hour)
	if !b.h.Status("a").Live {
		t.Error("a cell with an open watch does not count as live")
	}
	w.Close()
	if b.h.Status("a").Live {
		t.Error("a cell unheard of for an hour counts as live")
	}
	b.h.Seen("a")
	if s := b.h.Status("a"); !s.Live || s.Watching {
		t.Errorf("after another sign of life: %+v", s)
	}
}
