package storetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

var auditTests = map[string]func(*testing.T, Open){
	// Each change of each thing, by whom and from where, before and after.
	"audit records every change": func(t *testing.T, open Open) {
		f := start(t, open, func(c *Config) { c.Random = func(int) int { return 0 } }) // no subnet by chance
		ctx := func(who, from string) context.Context {
			return store.WithActor(t.Context(), store.Actor{Who: who, From: from})
		}
		alice, one := ctx("alice", "192.0.2.77"), ctx("cell one", "192.0.2.1")
		p, q := allow("web", "db", policy.TCP, 80), allow("web", "db", policy.UDP, 53, 60)
		var want []string // oldest first
		at := f.clock.Now()
		expect := func(r api.Revision, who, what, before, after string) {
			t.Helper()
			want = append(want, fmt.Sprintf("%d %s %s: %s %s -> %s", r, at.UTC().Format(time.RFC3339), who, what, before, after))
		}
		j := func(v any) string {
			text, err := json.Marshal(v)
			f.must(err)
			return string(text)
		}
		revision := func() api.Revision { return f.state().Revision }

		r, err := f.AddPolicies(alice, []policy.Policy{p, q})
		f.must(err)
		expect(r, "alice@192.0.2.77", "policy.create web -> db tcp 80", "", j(api.FromDomain(p)))
		expect(r, "alice@192.0.2.77", "policy.create web -> db udp 53-60", "", j(api.FromDomain(q)))
		// What is there already, or is not there, is no change.
		_, err = f.AddPolicies(alice, []policy.Policy{p})
		f.must(err)
		r, err = f.RemovePolicies(alice, []policy.Policy{q, allow("x", "y", policy.TCP, 1)})
		f.must(err)
		expect(r, "alice@192.0.2.77", "policy.delete web -> db udp 53-60", j(api.FromDomain(q)), "")

		f.clock.Advance(time.Second)
		at = f.clock.Now()
		request := api.LeaseRequest{Underlay: netip.MustParseAddr("192.0.2.1"), Port: 4789, Mode: api.ModeVXLAN}
		lease, err := f.Lease(one, "one", request)
		f.must(err)
		peer := api.Peer{Name: "one", Kind: api.KindTulle, Mode: api.ModeVXLAN, Underlay: request.Underlay, Port: 4789, Subnet: lease.Subnet, Generation: lease.Generation}
		expect(revision(), "cell one@192.0.2.1", "lease.grant one", "", j(peer))
		request.Generation = lease.Generation
		_, err = f.Lease(one, "one", request) // a renewal
		f.must(err)
		moved := peer
		request.Port, moved.Port = 4790, 4790
		_, err = f.Lease(one, "one", request)
		f.must(err)
		expect(revision(), "cell one@192.0.2.1", "lease.change one", j(peer), j(moved))

		addr := lease.Subnet.Addr().Next()
		list := api.EndpointsRequest{Generation: lease.Generation, Sequence: 1, Endpoints: []api.EndpointRegistration{
			{Container: "a", Address: addr, Incarnation: 1, App: api.AppRef{GUID: "web"}},
			{Container: "b", Address: addr.Next(), Incarnation: 2, App: api.AppRef{Name: "db", Org: "acme", Space: "prod"}},
		}}
		answer, err := f.SetEndpoints(one, "one", list)
		f.must(err)
		expect(answer.Revision, "cell one@192.0.2.1", "app.register web", "", `{"guid":"web"}`)
		expect(answer.Revision, "cell one@192.0.2.1", "app.register "+string(answer.Apps["b"]), "",
			j(api.AuditApp{GUID: string(answer.Apps["b"]), Name: "db", Space: "prod", Org: "acme"}))
		list.Sequence = 2
		list.Endpoints[0].App = api.AppRef{GUID: "web", Name: "web", Org: "acme", Space: "prod"} // gets a name
		answer, err = f.SetEndpoints(one, "one", list)
		f.must(err)
		expect(answer.Revision, "cell one@192.0.2.1", "app.register web", `{"guid":"web"}`,
			j(api.AuditApp{GUID: "web", Name: "web", Space: "prod", Org: "acme"}))

		silk := api.Peer{Name: "silk", Kind: api.KindSilk, Mode: api.ModeVXLAN, Underlay: netip.MustParseAddr("192.0.2.9"), Port: 4789, Subnet: netip.MustParsePrefix("10.255.200.0/24")}
		f.must(f.AddPeer(ctx("uid 0", "admin socket"), silk))
		silk.Generation = 1
		expect(revision(), "uid 0@admin socket", "peer.add silk", "", j(silk))
		f.must(f.RemovePeer(ctx("uid 0", "admin socket"), "silk"))
		expect(revision(), "uid 0@admin socket", "peer.remove silk", j(silk), "")

		daemon := ctx("legacy silk-daemon", "192.0.2.11")
		leased, err := f.AcquireSilk(daemon, netip.MustParseAddr("192.0.2.11"), false)
		f.must(err)
		f.must(f.RenewSilk(daemon, leased))
		silk = api.Peer{Name: "silk:192.0.2.11", Kind: api.KindSilk, Mode: api.ModeVXLAN, Underlay: leased.Underlay, Port: 4789, Subnet: leased.Subnet, Generation: 1}
		expect(revision(), "legacy silk-daemon@192.0.2.11", "lease.grant silk:192.0.2.11", "", j(silk))
		f.must(f.ReleaseSilk(daemon, leased.Underlay))
		expect(revision(), "legacy silk-daemon@192.0.2.11", "lease.release silk:192.0.2.11", j(silk), "")

		f.must(f.ReleaseLease(one, "one"))
		expect(revision(), "cell one@192.0.2.1", "lease.release one", j(moved), "")
		two, err := f.Lease(ctx("cell two", "192.0.2.2"), "two", api.LeaseRequest{Underlay: netip.MustParseAddr("192.0.2.2"), Port: 4789, Mode: api.ModeVXLAN})
		f.must(err)
		peer = api.Peer{Name: "two", Kind: api.KindTulle, Mode: api.ModeVXLAN, Underlay: netip.MustParseAddr("192.0.2.2"), Port: 4789, Subnet: two.Subnet, Generation: two.Generation}
		expect(revision(), "cell two@192.0.2.2", "lease.grant two", "", j(peer))
		f.clock.Advance(400 * time.Hour)
		at = f.clock.Now()
		_, err = f.Expire(t.Context())
		f.must(err)
		expect(revision(), "server@", "lease.expire two", j(peer), "")

		f.reopen()
		var got []string
		entries, err := f.Audit(t.Context(), 0, 1000)
		f.must(err)
		for i := range entries {
			e := entries[len(entries)-1-i]
			if e.ID != uint64(i+1) {
				t.Errorf("entry %d has the id %d", i+1, e.ID)
			}
			got = append(got, fmt.Sprintf("%d %s %s@%s: %s %s %s -> %s", e.Revision, e.At.Format(time.RFC3339), e.Who, e.From, e.Action, e.Subject, e.Before, e.After))
		}
		same(t, "the record", got, want)
	},

	// What was refused or given up left no entry, and no entry stands without its change.
	"audit and change are one": func(t *testing.T, open Open) {
		f := start(t, open, func(c *Config) { c.MaxTag = 3 })
		f.add(allow("a", "b", policy.TCP, 1))
		_, err := f.AddPolicies(t.Context(), []policy.Policy{allow("a", "c", policy.TCP, 1), allow("a", "d", policy.TCP, 1)})
		if !errors.Is(err, store.ErrTagsExhausted) {
			t.Fatalf("one tag too many: %v", err)
		}
		cancelled, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := f.AddPolicies(cancelled, []policy.Policy{allow("b", "a", policy.TCP, 1)}); err == nil {
			t.Fatal("a cancelled change was stored")
		}
		entries, err := f.Audit(t.Context(), 0, 1000)
		f.must(err)
		if len(entries) != 1 || entries[0].Subject != "a -> b tcp 1" {
			t.Errorf("entries %+v, want that of the one change that was stored", entries)
		}
	},

	"audit keeps the newest and is read in pages": func(t *testing.T, open Open) {
		f := start(t, open, func(c *Config) { c.Audit = 50 })
		for i := range 30 {
			f.add(allow("a", "b", policy.TCP, uint16(1+i)), allow("b", "a", policy.TCP, uint16(1+i)))
		}
		var got []string
		before, pages := uint64(0), 0
		for {
			page, err := f.Audit(t.Context(), before, 7)
			f.must(err)
			if len(page) == 0 {
				break
			}
			for _, e := range page {
				got = append(got, fmt.Sprint(e.ID, " ", e.Subject))
			}
			before = page[len(page)-1].ID
			pages++
		}
		var want []string
		for id := 60; id > 10; id-- {
			ends := "a -> b"
			if id%2 == 0 {
				ends = "b -> a"
			}
			want = append(want, fmt.Sprintf("%d %s tcp %d", id, ends, (id+1)/2))
		}
		same(t, "fifty of sixty entries", got, want)
		if pages != 8 {
			t.Errorf("read in %d pages", pages)
		}
	},

	"audit of writers at once": func(t *testing.T, open Open) {
		f := start(t, open)
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				ctx := store.WithActor(t.Context(), store.Actor{Who: fmt.Sprint("writer ", w)})
				for i := range 10 {
					if _, err := f.AddPolicies(ctx, []policy.Policy{allow("a", "b", policy.TCP, uint16(1+w*10+i))}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		entries, err := f.Audit(t.Context(), 0, 1000)
		f.must(err)
		if len(entries) != 80 {
			t.Fatalf("%d entries of 80 changes", len(entries))
		}
		for i, e := range entries {
			// Ids and revisions grow together, and each entry is its writer's.
			var port, w int
			if _, err := fmt.Sscanf(e.Subject+" "+e.Who, "a -> b tcp %d writer %d", &port, &w); err != nil {
				t.Fatal(err)
			}
			if uint64(e.Revision) != e.ID || e.ID != uint64(80-i) || (port-1)/10 != w || !strings.Contains(string(e.After), fmt.Sprint(port)) {
				t.Errorf("entry %+v", e)
			}
		}
	},
}
