package server_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
	"tulle/policy/store/pgtest"
	"tulle/policy/store/postgres"
	"tulle/policy/store/sqlstore"
)

// TestTwoServersOnOneDatabase has a cell on each of two servers: what is changed
// on one reaches the cells of both, and each knows how far both cells are.
func TestTwoServersOnOneDatabase(t *testing.T) {
	s := newSite(t, pgtest.Start(t).Database())
	one, two := s.serve(t), s.serve(t)
	a, b := s.cell(t, "a", one.Internal, 1, "web"), s.cell(t, "b", two.Internal, 2, "db")
	for n, address := range []string{one.External, two.External} {
		s.must(t, "POST", address, policies, body(fmt.Sprint("web db tcp 80 ", 80+n)))
		a.has(n + 1)
		b.has(n + 1)
	}
	s.must(t, "POST", one.External, remove, body("web db tcp 80 80"))
	a.has(1)
	b.has(1)
	a.mu.Lock()
	revision := a.revision
	a.mu.Unlock()
	for _, address := range []string{one.External, two.External} {
		for deadline := time.Now().Add(30 * time.Second); ; {
			text := s.must(t, "GET", address, "/v1/cells", "")
			var list api.Cells
			if err := json.Unmarshal([]byte(text), &list); err != nil {
				t.Fatal(err)
			}
			done := len(list.Cells) == 2
			for _, c := range list.Cells {
				done = done && c.Alive && c.Acknowledged >= revision
			}
			if done {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s never knows that both cells are at %d: %s", address, revision, text)
			}
		}
	}
}

// TestKilledReplicas kills one of two servers again and again under writes, with
// cells that reach them through a balancer: no change that was answered is lost,
// none is there twice, and all cells end at the same state.
func TestKilledReplicas(t *testing.T) {
	if database := os.Getenv("TULLE_REPLICA"); database != "" {
		runReplica(&site{database: database, dir: os.Getenv("TULLE_SITE")})
	}
	const kills, writers, between = 4, 3, 25
	s := newSite(t, pgtest.Start(t).Database())
	replicas := []*replica{s.spawn(t), s.spawn(t)}
	front, back := balance(t), balance(t)
	route := func() {
		front.set(replicas[0].External, replicas[1].External)
		back.set(replicas[0].Internal, replicas[1].Internal)
	}
	route()
	var cells []*siteCell
	for i := range 4 {
		cells = append(cells, s.cell(t, fmt.Sprint("cell-", i), back.Addr().String(), i, "hub"))
	}
	var mu sync.Mutex // guards answered and unclear
	answered, unclear := map[api.Policy]bool{}, map[api.Policy]bool{}
	for kill := range kills {
		var wg sync.WaitGroup
		under := make(chan struct{}, writers*between)
		for w := range writers {
			wg.Go(func() {
				for n := range between {
					app, port := policy.AppID(fmt.Sprintf("app-%d-%d", kill, w)), uint16(n+1)
					p := api.FromDomain(policy.Policy{Source: app, Destination: "hub", Protocol: policy.TCP, Ports: policy.PortRange{Start: port, End: port}})
					status, text, err := s.call(t.Context(), "POST", front.Addr().String(), policies, body(fmt.Sprintf("%s hub tcp %d %d", app, port, port)))
					mu.Lock()
					switch {
					case err == nil && status == http.StatusOK:
						answered[p] = true
					case err != nil: // the server may have stored it before it died
						unclear[p] = true
					default:
						t.Errorf("%v: %d %s", p, status, text)
					}
					mu.Unlock()
					under <- struct{}{}
				}
			})
		}
		for range writers * between / 3 {
			<-under
		}
		victim := kill % 2
		replicas[victim].kill()
		wg.Wait()
		replicas[victim] = s.spawn(t)
		route()
	}
	db, err := postgres.Open(t.Context(), s.database, postgres.Options{Options: sqlstore.Options{
		Lease: store.LeaseConfig{Network: netip.MustParsePrefix("10.255.0.0/16"), Bits: 24, Lifetime: time.Hour}}})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	state, err := db.State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stored := map[api.Policy]bool{}
	for _, p := range state.Policies {
		stored[api.FromDomain(p)] = true
		if p := api.FromDomain(p); !answered[p] && !unclear[p] {
			t.Errorf("%v is stored, and nobody asked for it", p)
		}
	}
	for p := range answered {
		if !stored[p] {
			t.Errorf("%v was answered and is lost", p)
		}
	}
	// History says the same: each policy was added once, by one revision.
	added := map[api.Policy]int{}
	changes, err := db.Changes(t.Context(), 0, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range changes {
		for _, p := range d.PoliciesAdded {
			added[p]++
		}
	}
	for p := range stored {
		if added[p] != 1 {
			t.Errorf("%v was added %d times", p, added[p])
		}
	}
	for _, c := range cells {
		c.until("has exactly what is stored", func() bool { return maps.Equal(c.policies, stored) })
	}
	t.Logf("%d answered, %d unclear, %d stored", len(answered), len(unclear), len(stored))
}
