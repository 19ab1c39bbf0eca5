package hub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tulle/policy/api"
)

// wire joins the hubs of several servers.
type wire struct {
	mu   sync.Mutex // guards ends and the deaf of each
	ends []*end
}

// end is one server's.
type end struct {
	*wire
	heard chan string
	deaf  bool // what is told to it is lost
}

func (w *wire) end() *end {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := &end{wire: w, heard: make(chan string, 1000)}
	w.ends = append(w.ends, e)
	return e
}

func (e *end) Tell(_ context.Context, text string) error {
	if len(text) > maxNotice {
		return errors.New("too long")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, other := range e.ends {
		if other != e && !other.deaf {
			other.heard <- text
		}
	}
	return nil
}

func (e *end) Heard() <-chan string { return e.heard }

func (e *end) setDeaf(deaf bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.deaf = deaf
}

// quick are options with which notices do not take their time; what gets lost
// is lost for an hour.
func quick(e *end) Options {
	return Options{Exchange: e, NoticeEvery: time.Millisecond, NoticeAll: time.Hour}
}

// web on a, at one server, db on b and c, at another one.
func twoServers(m *memory) (first api.Revision) {
	m.start("a", "web")
	m.start("b", "db")
	m.start("c", "db")
	return m.allow("web", "db")
}

func TestFloorFollowsTheCellsOfOtherServers(t *testing.T) {
	m := newMemory()
	first := twoServers(m)
	var w wire
	one, two := run(t, m, quick(w.end())), run(t, m, quick(w.end()))
	a := one.watch("a", "", 0)
	if got := floorOf(one.next(a)); got != 0 {
		t.Errorf("floor is %d before anybody acknowledged, want 0", got)
	}
	wb, wc := two.watch("b", "", 0), two.watch("c", "", 0)
	two.next(wb)
	two.next(wc)
	two.ack("b", first)
	two.ack("c", first)
	one.until(a, func(e api.Event) bool { return floorOf(e) == first })

	rev := m.start("a", "web")
	one.until(a, func(e api.Event) bool { return revisionOf(e) == rev && floorOf(e) == first })
	two.until(wb, func(e api.Event) bool { return revisionOf(e) == rev })
	two.until(wc, func(e api.Event) bool { return revisionOf(e) == rev })
	two.ack("b", rev)
	if got := one.h.Floor("a"); got != first {
		t.Errorf("floor is %d with c behind on the other server, want %d", got, first)
	}
	two.ack("c", rev)
	one.until(a, func(e api.Event) bool { return floorOf(e) == rev })

	// What concerns neither b nor c holds nobody up, and needs no notice.
	rev = m.start("far", "other")
	one.until(one.watch("far", "", 0), func(e api.Event) bool { return revisionOf(e) == rev })
	if got := one.h.Floor("a"); got != rev {
		t.Errorf("floor is %d after a change elsewhere, want %d", got, rev)
	}
	want := Status{Live: true, Watching: true, CaughtUp: true, Acked: rev, Seen: one.clock.Now()}
	if got := one.h.Status("b"); got != want {
		t.Errorf("b as the other server sees it: %+v, want %+v", got, want)
	}
}

func TestServerThatIsGoneHoldsNobodyUp(t *testing.T) {
	m := newMemory()
	first := twoServers(m)
	var w wire
	ends := w.end()
	one, two := run(t, m, quick(ends)), run(t, m, quick(w.end()))
	a := one.watch("a", "", 0)
	for _, cell := range []string{"b", "c"} {
		two.next(two.watch(cell, "", 0))
		two.ack(cell, first)
	}
	one.until(a, func(e api.Event) bool { return floorOf(e) == first })
	ends.setDeaf(true) // as if the other server were dead
	one.clock.advance(trusted)
	if s := one.h.Status("b"); s.Watching || !s.Live {
		t.Errorf("a cell whose server has just gone: %+v, want one that is live and not watching", s)
	}
	rev := m.start("a", "web")
	one.until(a, func(e api.Event) bool { return revisionOf(e) == rev })
	if got := one.h.Floor("a"); got != first {
		t.Errorf("floor is %d with b and c unheard of for a moment, want %d", got, first)
	}
	one.clock.advance(one.h.opt.LiveFor)
	if got := one.h.Floor("a"); got != rev {
		t.Errorf("floor is %d with b and c unheard of for long, want %d", got, rev)
	}
}

// A server that starts late gets to know at once how far all cells are.
func TestServerThatStartsLateIsTold(t *testing.T) {
	m := newMemory()
	first := twoServers(m)
	var w wire
	two := run(t, m, quick(w.end()))
	for _, cell := range []string{"b", "c"} {
		two.next(two.watch(cell, "", 0))
		two.ack(cell, first)
	}
	one := run(t, m, quick(w.end()))
	one.until(one.watch("a", "", 0), func(e api.Event) bool { return floorOf(e) == first })
}

// What got lost is mended by the next notice of everything.
func TestLostNotices(t *testing.T) {
	m := newMemory()
	first := twoServers(m)
	var w wire
	ear := w.end()
	one := run(t, m, quick(ear))
	often := quick(w.end())
	often.NoticeAll = 5 * time.Millisecond
	two := run(t, m, often)
	a := one.watch("a", "", 0)
	ear.setDeaf(true)
	for _, cell := range []string{"b", "c"} {
		two.next(two.watch(cell, "", 0))
		two.ack(cell, first)
	}
	ear.setDeaf(false)
	one.until(a, func(e api.Event) bool { return floorOf(e) == first })
}

// A cell that changes servers is counted by the newer of the two.
func TestCellThatChangesServers(t *testing.T) {
	m := newMemory()
	first := twoServers(m)
	var w wire
	one, two, three := run(t, m, quick(w.end())), run(t, m, quick(w.end())), run(t, m, quick(w.end()))
	a := one.watch("a", "", 0)
	dead := two.watch("b", "", 0) // its connection is dead, which two does not know yet
	two.next(dead)
	wc := two.watch("c", "", 0)
	two.next(wc)
	two.ack("b", first)
	two.ack("c", first)
	one.until(a, func(e api.Event) bool { return floorOf(e) == first })
	rev := m.start("a", "web")
	two.until(wc, func(e api.Event) bool { return revisionOf(e) == rev })
	wb := three.watch("b", "e", first)
	three.until(wb, func(e api.Event) bool { return revisionOf(e) == rev })
	three.ack("b", rev)
	two.ack("c", rev)
	one.until(a, func(e api.Event) bool { return floorOf(e) == rev })
}

// behind is a source that shows nothing new until it may.
type behind struct {
	*memory
	may chan struct{}
}

func (b behind) Changes(ctx context.Context, after api.Revision, limit int) ([]api.Delta, error) {
	select {
	case <-b.may:
		return b.memory.Changes(ctx, after, limit)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// A cell comes from a server that was faster: this one must not take it back to
// an older state, but look first.
func TestCellThatIsAheadIsNotTakenBack(t *testing.T) {
	m := newMemory()
	m.start("a", "web")
	m.start("b", "db")
	late := behind{m, make(chan struct{})}
	h, err := New(t.Context(), late, Options{Heartbeat: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	defer func() { stop(); <-done }()
	rev := m.allow("web", "db")
	w := h.Watch("a", "e", rev)
	defer w.Close()
	if e, ok, err := w.take(true); ok || err != nil {
		t.Errorf("a server that is behind says %+v, %v", e, err)
	}
	close(late.may)
	e, err := w.Next(t.Context())
	if err != nil || e.Heartbeat == nil || e.Heartbeat.Revision != rev {
		t.Errorf("a server that has come up says %+v, %v; want that it is at %d too", e, err, rev)
	}
	next := m.start("b", "db")
	for e.Delta == nil && err == nil {
		e, err = w.Next(t.Context())
	}
	if err != nil || e.Delta.Revision != next || len(e.Delta.EndpointsSet) != 1 {
		t.Errorf("then %+v, %v; want the change of revision %d", e.Delta, err, next)
	}
}

func TestNoticesAreShort(t *testing.T) {
	n := notice{From: "one", Epoch: "e", Cells: map[string]progress{}}
	for i := range 3000 {
		n.Cells[fmt.Sprintf("cell-%d.\"example\".\n", i)] = progress{Reached: 1<<63 + api.Revision(i), Watching: i%2 == 0}
	}
	got := map[string]progress{}
	parts := encodeNotices(n)
	for _, text := range parts {
		var part notice
		if err := json.Unmarshal([]byte(text), &part); err != nil || len(text) > maxNotice || part.From != n.From || part.Epoch != n.Epoch {
			t.Errorf("%d bytes, %v: %.100s", len(text), err, text)
		}
		for name, p := range part.Cells {
			got[name] = p
		}
	}
	if diff := cmp.Diff(n.Cells, got); diff != "" {
		t.Errorf("what the notices say (-want +got):\n%s", diff)
	}
	if len(parts) > 40 {
		t.Errorf("%d notices for 3000 cells", len(parts))
	}
	if greeting := encodeNotices(notice{From: "one"}); len(greeting) != 1 {
		t.Errorf("a greeting is %q", greeting)
	}
}

// FuzzNotice: whatever comes over the wire, the hub goes on, and a floor is
// never above its own revision.
func FuzzNotice(f *testing.F) {
	for _, text := range encodeNotices(notice{From: "x", Epoch: "e", Cells: map[string]progress{"b": {Reached: 3, Watching: true}}}) {
		f.Add(text)
	}
	f.Add(`{"from":"x","epoch":"e","cells":{"b":{"r":18446744073709551615,"w":true},"":{"r":1}}}`)
	f.Add(`{"from":"x","epoch":"other","cells":{"b":{"r":4}}}`)
	f.Add(`{"from":""}`)
	f.Add(`[]`)
	f.Fuzz(func(t *testing.T, text string) {
		m := newMemory()
		rev := twoServers(m)
		h, err := New(t.Context(), m, Options{Exchange: new(wire).end()})
		if err != nil {
			t.Fatal(err)
		}
		if err := h.hear(text); err != nil {
			return
		}
		if floor := h.Floor("a"); floor > rev {
			t.Errorf("floor %d at revision %d", floor, rev)
		}
		for name := range h.cells {
			if s := h.Status(name); s.CaughtUp && s.Acked != rev {
				t.Errorf("%q: %+v at revision %d", name, s, rev)
			}
		}
	})
}
