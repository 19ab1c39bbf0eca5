package client_test

import (
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/client"
	"tulle/policy/hub"
)

// beat is short where a test looks at what no event of its own announces.
const beat = 10 * time.Millisecond

func TestEndpointsAppearWhereAPolicyRelatesThem(t *testing.T) {
	r := newRig(t, hub.Options{})
	a, b := r.cell("a", client.Options{}), r.cell("b", client.Options{})
	a.until("sees its peer", func() bool { return a.peers["b"].Subnet == b.lease.Subnet && len(a.peers) == 1 })
	b.until("sees its peer", func() bool { return b.peers["a"].Port == 40001 && len(b.peers) == 1 })

	a.runs("web", "quiet")
	rev := b.runs("db", "quiet")
	a.reach(rev - 1)
	a.until("sees no endpoint", func() bool { return len(a.endpoints)+len(a.policies)+len(a.tags) == 0 })
	b.until("sees no endpoint", func() bool { return len(b.endpoints)+len(b.policies)+len(b.tags) == 0 })

	rev = r.allow("web", "db", 5432)
	for _, c := range []*cell{a, b} {
		c.reach(rev)
		c.until("has the policy and two tags", func() bool {
			return len(c.policies) == 1 && c.tags["web"] != policy.NoTag && c.tags["db"] != policy.NoTag && len(c.tags) == 2
		})
	}
	a.until("sees db alone", func() bool { return a.knows("db") && len(a.endpoints) == 1 })
	b.until("sees web alone", func() bool { return b.knows("web") && len(b.endpoints) == 1 })

	// An instance is replaced by one with another address: the old one is gone.
	rev = b.runs("quiet", "db")
	a.until("sees the new instance alone", func() bool {
		for k, e := range a.endpoints {
			return len(a.endpoints) == 1 && e.App == "db" && k.Incarnation == 2<<8+1
		}
		return false
	})
	// … and the owner learns when all who are concerned have it in force.
	b.until("is told that a has acknowledged", func() bool { return b.floor >= rev })

	rev = r.deny("web", "db", 5432)
	for _, c := range []*cell{a, b} {
		c.reach(rev)
		c.until("forgot it all", func() bool { return len(c.endpoints)+len(c.policies)+len(c.tags) == 0 })
	}
	if a.snapshots != 1 || b.snapshots != 1 {
		t.Errorf("%d and %d snapshots, want one each", a.snapshots, b.snapshots)
	}
}

func TestHandlerReturnedIsAcknowledged(t *testing.T) {
	r := newRig(t, hub.Options{})
	a, b := r.cell("a", client.Options{}), r.cell("b", client.Options{})
	a.runs("web")
	b.runs("db")
	rev := r.allow("web", "db", 1)
	a.until("is told that b has it", func() bool { return a.floor >= rev })

	b.hold()
	rev = a.runs("web", "web")
	if got := r.internal.Hub().Floor("a"); got >= rev {
		t.Errorf("floor is %d while b is still at work on revision %d", got, rev)
	}
	b.release()
	a.until("is told that b has it", func() bool { return a.floor >= rev })
	if s := r.internal.Cell("b"); s.Acknowledged < rev || !s.Live || !s.Watching {
		t.Errorf("b is %+v, want it live, watching and at %d", s, rev)
	}
}

func TestServerRestart(t *testing.T) {
	r := newRig(t, hub.Options{Heartbeat: beat})
	a, b := r.cell("a", client.Options{}), r.cell("b", client.Options{})
	a.runs("web")
	b.runs("db")
	a.reach(r.allow("web", "db", 1))
	before := a.Status()

	r.stop()
	r.start()
	rev := r.allow("web", "db", 2)
	a.reach(rev)
	a.until("has both policies and db", func() bool { return len(a.policies) == 2 && a.knows("db") })
	a.until("is connected again, in the same epoch", func() bool {
		s := a.Status()
		return s.Connected && s.Epoch == before.Epoch && s.Reconnects > before.Reconnects && s.Revision >= rev
	})
	// Whoever missed nothing goes on from its revision. (Had it come back after
	// the policy, a snapshot would be due: that change is before the new hub's time.)
	a.until("has it by at most one more snapshot", func() bool { return a.snapshots <= 2 })
}

func TestCellGoesOnFromItsRevision(t *testing.T) {
	r := newRig(t, hub.Options{Heartbeat: beat})
	a := r.cell("a", client.Options{})
	a.runs("web")
	r.stop()
	r.start()
	a.until("is back", func() bool { return a.Status().Reconnects > 0 && a.Connected() && r.internal.Cell("a").Watching })
	a.reach(r.allow("web", "db", 1))
	a.until("has the policy", func() bool { return len(a.policies) == 1 })
	if a.snapshots != 1 {
		t.Errorf("%d snapshots, want only the first: nothing was missed", a.snapshots)
	}
}

func TestRestoreGivesASnapshot(t *testing.T) {
	r := newRig(t, hub.Options{Heartbeat: beat})
	a := r.cell("a", client.Options{})
	a.runs("web")
	a.reach(r.allow("web", "db", 1))
	old := a.Status().Epoch

	r.stop()
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(r.database() + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	r.start()
	a.until("has the snapshot of the new epoch", func() bool { return a.snapshots == 2 && a.epoch != old && len(a.policies) == 0 })
	a.until("is in the store's epoch", func() bool { return a.Status().Epoch == r.store.Epoch() })
}

func TestSlowCellDelaysNobody(t *testing.T) {
	r := newRig(t, hub.Options{Pending: 16})
	slow, quick := r.cell("slow", client.Options{}), r.cell("quick", client.Options{})
	slow.runs("web")
	quick.runs("web")
	slow.hold()
	var rev api.Revision
	for port := range uint16(200) {
		rev = r.allow("web", "db", 1+port)
	}
	quick.until("has all policies", func() bool { return len(quick.policies) == 200 })
	if s := r.internal.Cell("slow"); s.Acknowledged >= rev || !s.Watching {
		t.Errorf("slow is %+v, want it watching and behind %d", s, rev)
	}
	slow.release()
	slow.until("has all policies", func() bool { return len(slow.policies) == 200 && slow.revision >= rev })
}

func TestHandlerErrorStartsOverWithASnapshot(t *testing.T) {
	r := newRig(t, hub.Options{})
	a := r.cell("a", client.Options{})
	a.runs("web")
	a.mu.Lock()
	a.fail = errors.New("the table is on fire")
	a.mu.Unlock()
	r.allow("web", "db", 1)
	a.until("has the policy by a second snapshot", func() bool { return a.snapshots == 2 && len(a.policies) == 1 })
}

func TestOneConnection(t *testing.T) {
	r := newRig(t, hub.Options{})
	a := r.cell("a", client.Options{AckEvery: time.Millisecond})
	for range 20 {
		a.runs("web")
		a.runs()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conns != 1 {
		t.Errorf("%d connections were opened, want one for stream, acknowledgements and requests", r.conns)
	}
}

// From the commit of a policy to the end of the handler on a cell that it
// concerns, over real TLS and the real store. A hang-over of a busy machine is
// no failure; a stream that waits for its heartbeat is.
func TestLatency(t *testing.T) {
	r := newRig(t, hub.Options{})
	a, b := r.cell("a", client.Options{}), r.cell("b", client.Options{})
	a.runs("web")
	b.runs("db")
	var took, wholly []time.Duration
	for port := range uint16(200) {
		start := time.Now()
		rev := r.allow("web", "db", 1+port)
		committed := time.Now()
		for _, c := range []*cell{a, b} {
			c.until("has the policy", func() bool { return c.revision >= rev && len(c.policies) == int(port)+1 })
			c.mu.Lock()
			took = append(took, max(0, c.at.Sub(committed)))
			c.mu.Unlock()
		}
		wholly = append(wholly, time.Since(start))
	}
	slices.Sort(took)
	slices.Sort(wholly)
	t.Logf("commit to delta handled: median %s, 99%% %s, most %s; with the commit: median %s",
		took[len(took)/2], took[len(took)*99/100], took[len(took)-1], wholly[len(wholly)/2])
	if got := took[len(took)/2]; got > 50*time.Millisecond {
		t.Errorf("median latency %s", got)
	}
}
