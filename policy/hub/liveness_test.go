package hub

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tulle/policy/api"
)

// told waits for the next verdict on the cells.
func (b *bench) told(w *Watcher) []string {
	b.Helper()
	return b.until(w, func(e api.Event) bool { return e.Liveness != nil }).Liveness.Lost
}

func (b *bench) expectLost(w *Watcher, want ...string) {
	b.Helper()
	if diff := cmp.Diff(append([]string{}, want...), b.told(w)); diff != "" {
		b.Errorf("lost cells (-want +got):\n%s", diff)
	}
}

func (m *memory) peers(peers ...api.Peer) api.Revision {
	return m.commit(func(w *world, d *api.Delta) {
		for _, p := range peers {
			w.peers[p.Name] = p
			d.PeersSet = append(d.PeersSet, p)
		}
	})
}

// A cell is lost when it gave no sign of life for three heartbeats, whatever its
// watch, and back with the next one. Silk peers never give any.
func TestLostCellsAreToldAndComeBack(t *testing.T) {
	m := newMemory()
	rev := m.peers(api.Peer{Name: "a", Kind: api.KindTulle}, api.Peer{Name: "b", Kind: api.KindTulle}, api.Peer{Name: "silk", Kind: api.KindSilk})
	b := run(t, m, Options{SilentAfter: 30 * time.Second})
	a, other := b.watch("a", "", 0), b.watch("b", "", 0)
	b.until(a, func(e api.Event) bool { return e.Snapshot != nil })

	b.clock.advance(29 * time.Second)
	b.ack("a", rev)
	b.h.judge() // too early for anybody to have been silent
	b.clock.advance(time.Second)
	b.h.judge()
	b.expectLost(a, "b")
	b.h.judge()
	if a.owes() || a.verdict != b.h.verdict {
		t.Error("the same verdict is told again")
	}
	b.until(other, func(e api.Event) bool { return e.Snapshot != nil })
	b.expectLost(other, "b") // its watch is open still, as far as the server knows

	b.ack("b", rev)
	b.expectLost(a)
	b.clock.advance(29 * time.Second)
	b.ack("b", rev)
	b.clock.advance(time.Second)
	b.h.judge()
	b.expectLost(other, "a")
	b.h.Seen("a")
	b.expectLost(other)

	// Who comes later is told at once.
	b.clock.advance(time.Minute)
	b.ack("a", rev)
	b.h.judge()
	late := b.watch("c", "", 0)
	b.expectLost(late, "b")
	b.watch("b", "e", rev)
	b.expectLost(late)

	// A cell that gave up its lease is nobody's loss.
	b.clock.advance(time.Minute)
	b.ack("a", rev)
	b.h.judge()
	b.expectLost(late, "b")
	gone := m.commit(func(w *world, d *api.Delta) {
		delete(w.peers, "b")
		d.PeersRemoved = []string{"b"}
	})
	b.until(late, func(e api.Event) bool { return e.Delta != nil && e.Delta.Revision == gone })
	b.h.judge()
	b.expectLost(late)
}

// A hub that has just started has heard of nobody, and says nothing of anybody.
// Cells keep what they were told before.
func TestAStartJudgesNobody(t *testing.T) {
	m := newMemory()
	m.peers(api.Peer{Name: "a", Kind: api.KindTulle}, api.Peer{Name: "b", Kind: api.KindTulle})
	b := run(t, m, Options{SilentAfter: 30 * time.Second})
	a := b.watch("a", "", 0)
	for range 30 {
		b.clock.advance(999 * time.Millisecond)
		b.h.judge()
	}
	if b.h.verdict != 0 {
		t.Errorf("judged %v after less than 30 s", b.h.lost)
	}
	b.h.Seen("a")
	b.clock.advance(time.Second)
	b.h.judge()
	b.expectLost(a, "b")
}

// A cell that watches at another server is as silent as that one says.
func TestCellsOfOtherServersAreJudgedByTheirSilence(t *testing.T) {
	m := newMemory()
	m.peers(api.Peer{Name: "a", Kind: api.KindTulle}, api.Peer{Name: "b", Kind: api.KindTulle})
	b := run(t, m, Options{SilentAfter: 30 * time.Second})
	a := b.watch("a", "", 0)
	hear := func(text string) {
		t.Helper()
		if err := b.h.hear(text); err != nil {
			t.Fatal(err)
		}
	}
	b.clock.advance(time.Minute)
	b.h.Seen("a")
	hear(`{"from":"other","epoch":"e","cells":{"b":{"r":1,"w":true,"q":10000}}}`)
	b.h.judge()
	b.expectLost(a)
	b.clock.advance(20 * time.Second)
	hear(`{"from":"other","epoch":"e","cells":{"b":{"r":1,"w":true,"q":30000}}}`)
	b.h.judge()
	b.expectLost(a, "b")
	// The same silence, told with other delays, is no sign of life.
	b.clock.advance(5 * time.Second)
	hear(`{"from":"other","epoch":"e","cells":{"b":{"r":1,"w":true,"q":34999}}}`)
	if a.owes() || a.verdict != b.h.verdict {
		t.Errorf("lost cells are %v once the silent one is told of again", b.h.lost)
	}
	hear(`{"from":"other","epoch":"e","cells":{"b":{"r":1,"w":true}}}`)
	b.expectLost(a)
}
