package hub

import (
	"testing"
	"time"

	"tulle/policy/api"
)

// lease enters a cell, or a peer of another kind.
func (m *memory) lease(name string, kind api.PeerKind) api.Revision {
	return m.commit(func(w *world, d *api.Delta) {
		p := api.Peer{Name: name, Kind: kind}
		w.peers[name] = p
		d.PeersSet = append(d.PeersSet, p)
	})
}

func (m *memory) expire(name string) api.Revision {
	return m.commit(func(w *world, d *api.Delta) {
		delete(w.peers, name)
		d.PeersRemoved = append(d.PeersRemoved, name)
	})
}

// comesTo waits until everything up to the revision is known to be in force.
func (b *bench) comesTo(rev api.Revision) {
	b.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		got := b.h.Acknowledged()
		if got == rev {
			return
		}
		if time.Now().After(deadline) {
			b.Fatalf("acknowledged everywhere is %d, want %d", got, rev)
		}
	}
}

// TestAcknowledgedEverywhere: every cell with a lease counts, whatever it has to
// do with the change, until it has it or its lease ends.
func TestAcknowledgedEverywhere(t *testing.T) {
	m := newMemory()
	b := run(t, m, Options{})
	b.comesTo(1)
	m.lease("silk", api.KindSilk)
	b.comesTo(m.allow("web", "db")) // nobody there who acknowledges
	m.lease("a", api.KindTulle)
	m.start("a", "web")
	first := m.lease("c", api.KindTulle)
	b.comesTo(0) // neither was ever heard of
	a, c := b.watch("a", "", 0), b.watch("c", "", 0)
	b.until(a, func(e api.Event) bool { return revisionOf(e) == first })
	b.until(c, func(e api.Event) bool { return revisionOf(e) == first })
	b.ack("a", first)
	b.comesTo(0)
	b.ack("c", first)
	b.comesTo(first)
	// A change that concerns a alone.
	second := m.allow("web", "cache")
	b.until(a, func(e api.Event) bool { return revisionOf(e) == second })
	b.comesTo(first)
	b.ack("a", second)
	b.comesTo(second)
	// A cell that is gone holds everything up, however long it is silent, until its
	// lease ends.
	a.Close()
	m.allow("web", "mail")
	b.clock.advance(100 * time.Hour)
	b.comesTo(second)
	last := m.expire("a") // which the other one has to take in
	b.until(c, func(e api.Event) bool { return revisionOf(e) == last })
	b.ack("c", last)
	b.comesTo(last)
}

// TestAcknowledgedOnEveryServer: what a cell may be told by another server counts
// as well as what the cells there have.
func TestAcknowledgedOnEveryServer(t *testing.T) {
	m := newMemory()
	first := m.lease("a", api.KindTulle)
	var w wire
	end, back := w.end(), w.end()
	options := quick(end)
	one, two := run(t, m, options), run(t, m, quick(back))
	at := two.watch("a", "", 0)
	two.until(at, func(e api.Event) bool { return revisionOf(e) == first })
	two.ack("a", first)
	one.comesTo(first)
	// The other server goes on, and is not heard: it may tell a cell that comes to
	// it of anything that it had come to.
	end.setDeaf(true)
	second := m.allow("web", "db")
	for one.h.Revision() != second || two.h.Revision() != second {
		time.Sleep(time.Millisecond)
	}
	if got := one.h.Acknowledged(); got != first {
		t.Errorf("%d with the other server unheard of, want %d", got, first)
	}
	end.setDeaf(false)
	two.h.mu.Lock()
	two.h.speakLocked(true)
	two.h.mu.Unlock()
	one.comesTo(second)
}
