package hub

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tulle/policy"
	"tulle/policy/api"
)

// joins enters cells as peers.
func (m *memory) joins(names ...string) {
	m.commit(func(w *world, d *api.Delta) {
		for _, name := range names {
			p := api.Peer{Name: name, Kind: api.KindTulle}
			w.peers[name] = p
			d.PeersSet = append(d.PeersSet, p)
		}
	})
}

func (m *memory) leaves(name string) api.Revision {
	return m.commit(func(w *world, d *api.Delta) {
		delete(w.peers, name)
		d.PeersRemoved = append(d.PeersRemoved, name)
	})
}

// asked is an Enforced under way.
type asked struct {
	b    *bench
	done chan Receipt
}

func (b *bench) ask(q Question, wait time.Duration) asked {
	a := asked{b, make(chan Receipt, 1)}
	go func() {
		r, err := b.h.Enforced(b.Context(), q, wait)
		if err != nil {
			b.Errorf("%+v: %v", q, err)
		}
		r.Took = 0
		a.done <- r
	}()
	return a
}

func (a asked) want(what string, want Receipt) {
	a.b.Helper()
	select {
	case got := <-a.done:
		if diff := cmp.Diff(want, got); diff != "" {
			a.b.Errorf("%s (-want +got):\n%s", what, diff)
		}
	case <-time.After(20 * time.Second):
		a.b.Fatalf("%s: no answer", what)
	}
}

// waiting returns when such a receipt is being waited for.
func (b *bench) waiting(what string, such func(*receipt) bool) {
	b.Helper()
	for begun := time.Now(); ; runtime.Gosched() {
		b.h.mu.Lock()
		for r := range b.h.receipts {
			if such(r) {
				b.h.mu.Unlock()
				return
			}
		}
		b.h.mu.Unlock()
		if time.Since(begun) > 10*time.Second {
			b.Fatalf("no receipt waits for %s", what)
		}
	}
}

// waits fails when the answer came already.
func (a asked) waits(what string) {
	a.b.Helper()
	select {
	case got := <-a.done:
		a.b.Fatalf("%s: answered already: %+v", what, got)
	default:
	}
}

// web on a, db on b and c, and d apart: a receipt counts who is concerned, waits
// for the last of them, and for nobody else.
func TestReceiptCountsTheConcernedCells(t *testing.T) {
	m := newMemory()
	m.joins("a", "b", "c", "d")
	m.start("a", "web")
	m.start("b", "db")
	m.start("c", "db")
	m.start("d", "other")
	b := run(t, m, Options{})
	ws := map[string]*Watcher{}
	for _, name := range []string{"a", "b", "c", "d"} {
		ws[name] = b.watch(name, "", 0)
		b.ack(name, revisionOf(b.next(ws[name])))
	}
	rev := m.allow("web", "db")
	p := policy.Policy{Source: "web", Destination: "db", Protocol: policy.TCP, Ports: policy.PortRange{Start: 1, End: 1}}
	for _, name := range []string{"a", "b", "c"} {
		b.until(ws[name], func(e api.Event) bool { return revisionOf(e) == rev })
	}
	by := b.ask(Question{Revision: rev}, time.Hour)
	of := b.ask(Question{Revision: rev, Policies: []policy.Policy{p}}, time.Hour)
	all := b.ask(Question{Revision: rev, Everyone: true}, time.Hour)
	b.ack("a", rev)
	b.ack("b", rev)
	b.ask(Question{Revision: rev}, 0).want("with c behind, at once", Receipt{Revision: rev, Cells: 3, Reached: 2, Late: []string{"c"}})
	by.waits("with c behind")
	b.ack("c", rev)
	by.want("all three", Receipt{Revision: rev, Cells: 3, Reached: 3})
	of.want("by the policies", Receipt{Revision: rev, Cells: 3, Reached: 3})
	all.want("everyone; d is owed nothing", Receipt{Revision: rev, Cells: 4, Reached: 4})

	// What comes later takes nothing back, though nobody has it in force yet.
	m.allow("web", "other")
	for _, name := range []string{"a", "d"} {
		b.until(ws[name], func(e api.Event) bool { return revisionOf(e) == rev+1 })
	}
	b.ask(Question{Revision: rev}, 0).want("after a later change", Receipt{Revision: rev, Cells: 3, Reached: 3})

	// A revision that is there already, asked for by its policies (adding what is
	// there changes nothing), and one that nobody is concerned by.
	b.ask(Question{Revision: rev + 1, Policies: []policy.Policy{p}}, 0).want("of web, db",
		Receipt{Revision: rev + 1, Cells: 3, Reached: 2, Late: []string{"a"}})
	none := m.allow("nowhere", "nobody")
	b.ask(Question{Revision: none}, time.Hour).want("of nobody", Receipt{Revision: none})
}

func TestReceiptNamesTheSilentAndWaitsForTheRest(t *testing.T) {
	m := newMemory()
	m.joins("a", "b", "c")
	m.start("a", "web")
	m.start("b", "db")
	m.start("c", "db") // never heard of
	b := run(t, m, Options{SilentAfter: 30 * time.Second})
	started := b.clock.Now()
	wa, wb := b.watch("a", "", 0), b.watch("b", "", 0)
	b.ack("a", revisionOf(b.next(wa)))
	b.ack("b", revisionOf(b.next(wb)))
	rev := m.allow("web", "db")
	b.until(wa, func(e api.Event) bool { return revisionOf(e) == rev })
	b.until(wb, func(e api.Event) bool { return revisionOf(e) == rev })
	b.ack("a", rev)
	b.ask(Question{Revision: rev}, 0).want("right after the start nobody is silent",
		Receipt{Revision: rev, Cells: 3, Reached: 1, Late: []string{"b", "c"}})

	b.clock.advance(3 * time.Minute)
	b.h.Seen("b")
	q := b.ask(Question{Revision: rev}, time.Hour)
	b.waiting("b to speak or turn silent", func(r *receipt) bool { return r.next == "b" })
	q.waits("b speaks")
	b.ack("b", rev)
	q.want("with c silent", Receipt{Revision: rev, Cells: 3, Reached: 2, Silent: []SilentCell{{"c", started}}})

	// A watch that hangs is silence too: its stream is open and says nothing.
	next := m.start("b", "db")
	b.until(wa, func(e api.Event) bool { return revisionOf(e) == next })
	b.until(wb, func(e api.Event) bool { return revisionOf(e) == next })
	seen := b.clock.Now()
	b.ack("b", next)
	b.clock.advance(31 * time.Second)
	b.ask(Question{Revision: next}, time.Hour).want("with a hanging",
		Receipt{Revision: next, Cells: 2, Reached: 1, Silent: []SilentCell{{"a", seen.Add(-3 * time.Minute)}}})

	// A cell whose lease ended does not count any more, while one waits, too.
	b.h.Seen("a")
	q = b.ask(Question{Revision: rev, Everyone: true}, time.Hour)
	q.want("c is silent", Receipt{Revision: rev, Cells: 3, Reached: 2, Silent: []SilentCell{{"c", started}}})
	b.h.Seen("c")
	q = b.ask(Question{Revision: rev, Everyone: true}, time.Hour)
	gone := m.leaves("c")
	b.until(wa, func(e api.Event) bool { return revisionOf(e) == gone })
	q.want("c is gone", Receipt{Revision: rev, Cells: 2, Reached: 2})
}

func TestReceiptOfWhatIsNotThereYet(t *testing.T) {
	m := newMemory()
	m.joins("a")
	m.start("a", "web")
	b := run(t, m, Options{Keep: 2})
	w := b.watch("a", "", 0)
	last := revisionOf(b.next(w))
	b.ack("a", last)
	q := b.ask(Question{Revision: last + 1}, 0)
	b.waiting("the next revision", func(r *receipt) bool { return r.ask.Revision == last+1 })
	q.waits("the next revision is not there")
	rev := m.start("a", "web")
	b.until(w, func(e api.Event) bool { return revisionOf(e) == rev })
	b.ack("a", rev)
	if got := <-q.done; got.Cells != 1 || got.Revision != rev || rev != last+1 {
		t.Errorf("once it is there: %+v", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.h.Enforced(ctx, Question{Revision: 99}, time.Hour); !errors.Is(err, ErrFuture) {
		t.Errorf("a revision that never comes: %v, want %v", err, ErrFuture)
	}
	// The first is not remembered, so everyone counts.
	b.ask(Question{Revision: 1}, 0).want("a forgotten revision", Receipt{Revision: 1, Cells: 1, Reached: 1})
}

// A receipt asked for at one server counts the cells that another one serves.
func TestReceiptCountsCellsOfOtherServers(t *testing.T) {
	m := newMemory()
	m.joins("a", "b", "c")
	first := twoServers(m)
	var w wire
	one, two := run(t, m, quick(w.end())), run(t, m, quick(w.end()))
	one.next(one.watch("a", "", 0))
	one.ack("a", first)
	wb, wc := two.watch("b", "", 0), two.watch("c", "", 0)
	two.next(wb)
	two.next(wc)
	q := one.ask(Question{Revision: first}, time.Hour)
	two.ack("b", first)
	q.waits("with c behind on the other server")
	two.ack("c", first)
	q.want("of all three", Receipt{Revision: first, Cells: 3, Reached: 3})
}
