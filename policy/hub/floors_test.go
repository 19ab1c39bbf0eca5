package hub

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

// TestFloorsOfManyCells holds floors that were found together against those
// found one by one, cell by related cell.
func TestFloorsOfManyCells(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		const cells, apps = 8, 6
		x := NewIndex(&store.State{Epoch: "e", Revision: 100})
		d := api.Delta{Revision: 101}
		for range 10 {
			d.PoliciesAdded = append(d.PoliciesAdded, api.FromDomain(policy.Policy{Source: numbered(rng.IntN(apps)),
				Destination: numbered(rng.IntN(apps)), Protocol: policy.TCP, Ports: policy.PortRange{Start: 1, End: 1}}))
		}
		for n := range 20 {
			d.EndpointsSet = append(d.EndpointsSet, api.Endpoint{Cell: fmt.Sprint("cell-", rng.IntN(cells)),
				Container: fmt.Sprint(n), App: numbered(rng.IntN(apps)), Generation: 1, Incarnation: 1})
		}
		if _, err := x.Apply(d); err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		started := now.Add(-time.Duration(rng.IntN(2)) * time.Hour) // long ago, or not
		h := &Hub{x: x, started: started, opt: Options{Now: func() time.Time { return now }}.withDefaults(), cells: map[string]*cell{}}
		for n := range cells {
			if rng.IntN(5) == 0 {
				continue // never heard of
			}
			c := &cell{acked: api.Revision(rng.IntN(101)), owed: 101, seen: now.Add(-time.Duration(rng.IntN(2)) * time.Hour)}
			if rng.IntN(3) > 0 {
				c.watcher = &Watcher{h: h, sent: api.Revision(90 + rng.IntN(12))}
			}
			h.cells[fmt.Sprint("cell-", n)] = c
		}
		known := make(floors)
		for n := range cells {
			name := fmt.Sprint("cell-", n)
			want := x.revision
			related := x.related(map[string]struct{}{name: {}})
			delete(related, name)
			for other := range related {
				c := h.cells[other]
				grace := now.Sub(started) < h.opt.LiveFor
				switch {
				case c == nil && grace:
					want = 0
				case c == nil:
				case c.watcher != nil || grace || now.Sub(c.seen) < h.opt.LiveFor:
					rev, _ := h.reachedLocked(c)
					want = min(want, rev)
				}
			}
			if got := h.floorLocked(name, known); got != want {
				t.Fatalf("seed %d: floor of %s is %d, want %d", seed, name, got, want)
			}
		}
	}
}

func numbered(n int) policy.AppID { return policy.AppID(fmt.Sprint("app-", n)) }
