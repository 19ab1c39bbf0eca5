package storetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

// furnished is a store with something of everything: policies, tags in use and
// at rest, named and nameless apps, a cell with containers, one whose lease has
// ended, one whose subnet another got, a silk peer, one that leases, a cell of
// mode wireguard, the router's tag, security groups, a domain and
// routes.
func furnished(t *testing.T, open Open) *fixture {
	f := start(t, open)
	f.add(allow("web", "db", policy.TCP, 80), allow("web", "cache", policy.UDP, 53, 60), allow("gone", "db", policy.TCP, 1))
	f.remove(allow("gone", "db", policy.TCP, 1))
	l := f.lease("one", at("192.0.2.1:4789"))
	a := l.Subnet.Addr().Next()
	f.endpoints("one", api.EndpointsRequest{Generation: l.Generation, Sequence: 7, Endpoints: []api.EndpointRegistration{
		{Container: "c1", Address: a, App: api.AppRef{GUID: "web"}, Instance: "0", Incarnation: 1},
		{Container: "c2", Address: a.Next(), App: api.AppRef{Name: "db", Org: "acme", Space: "prod"}, Incarnation: 2},
	}})
	ended := f.lease("two", at("192.0.2.2:4789"))
	f.must(f.ReleaseLease(t.Context(), "two"))
	lost := f.lease("three", at("192.0.2.3:4789"))
	f.must(f.ReleaseLease(t.Context(), "three"))
	if lost.Subnet == ended.Subnet {
		t.Fatalf("both had %s", lost.Subnet)
	}
	f.must(f.AddPeer(t.Context(), api.Peer{Name: "silk", Underlay: netip.MustParseAddr("192.0.2.9"), Subnet: lost.Subnet}))
	f.acquire("192.0.2.11", false)
	f.acquire("192.0.2.12", true)
	_, err := f.Lease(t.Context(), "wg", api.LeaseRequest{Underlay: netip.MustParseAddr("192.0.2.5"), Port: 4789,
		Mode: api.ModeWireGuard, Key: api.TunnelKey{1, 2, 3}, NextKey: api.TunnelKey{4}, WireGuardPort: 51820, EncapsulationKey: encapsulation(1)})
	f.must(err)
	_, err = f.Tag(t.Context(), "router", "router")
	f.must(err)
	for _, name := range []string{"b", "a", "c"} {
		f.must(f.PutSecurityGroup(t.Context(), group(name, "s1", "s2")))
	}
	f.must(f.DeleteSecurityGroup(t.Context(), "guid-c"))
	_, err = f.AddDomain(t.Context(), "acme.internal")
	f.must(err)
	f.mapped(route("z.acme.internal", "web"), route("a.apps.internal", "db"), route("a.apps.internal", "10.255.9.9"))
	return f
}

// written is a backup's text and what is read from it.
func (f *fixture) written(b *store.Backup) (string, *store.Backup) {
	f.t.Helper()
	text, err := json.Marshal(b)
	f.must(err)
	again, err := store.ReadBackup(bytes.NewReader(text))
	f.must(err)
	return string(text), again
}

func (f *fixture) export() *store.Backup {
	f.t.Helper()
	b, err := f.Export(f.t.Context())
	f.must(err)
	return b
}

// unlike takes out of a backup what a restored store has of its own.
var unlike = cmp.Options{
	cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}),
	cmpopts.IgnoreFields(store.Backup{}, "Epoch", "Revision", "Audit", "PoliciesUpdated", "GroupsUpdated"),
}

var backupTests = map[string]func(*testing.T, Open){
	"a backup is restored as it was, under a new epoch": func(t *testing.T, open Open) {
		f := furnished(t, open)
		b := f.export()
		_, read := f.written(b)
		g := start(t, open)
		fresh := g.Epoch()
		changed := g.Changed()
		g.must(g.Import(store.WithActor(t.Context(), store.Actor{Who: "uid 0", From: "command"}), read))
		select {
		case <-changed:
		case <-time.After(10 * time.Second):
			t.Error("nobody was told of the import")
		}
		after := g.export()
		if diff := cmp.Diff(b, after, unlike); diff != "" {
			t.Errorf("restored (-was +is):\n%s", diff)
		}
		same(t, "tags", g.tags(), f.tags())
		same(t, "silk leases", g.silkLeases(), f.silkLeases())
		same(t, "routes", g.routes(store.RouteFilter{}), f.routes(store.RouteFilter{}))
		for _, filter := range []store.GroupFilter{{All: true}, {Spaces: []string{"s2"}}} {
			was, _, err := f.SecurityGroups(t.Context(), filter)
			f.must(err)
			is, _, err := g.SecurityGroups(t.Context(), filter)
			g.must(err)
			if len(was) == 0 {
				t.Error("no groups to compare")
			}
			same(t, "security groups", is, was)
		}
		if after.Epoch == b.Epoch || after.Epoch == fresh || after.Epoch != g.Epoch() {
			t.Errorf("epoch %s, of the backup %s, of the empty store %s, told %s", after.Epoch, b.Epoch, fresh, g.Epoch())
		}
		if after.Revision != b.Revision+1 {
			t.Errorf("revision %d after a backup of %d", after.Revision, b.Revision)
		}
		n := len(b.Audit)
		if len(after.Audit) != n+1 || after.Audit[n].Action != api.StoreImport || after.Audit[n].Who != "uid 0" {
			t.Fatalf("the record has %d entries after %d: %+v", len(after.Audit), n, after.Audit)
		}
		for i, e := range b.Audit {
			if got := after.Audit[i]; got.ID != e.ID || got.Subject != e.Subject || !bytes.Equal(got.After, e.After) || !bytes.Equal(got.Before, e.Before) {
				t.Errorf("entry %d was %+v, is %+v", i, e, got)
			}
		}
		// Whoever knows the other history is not led on by this one.
		if _, err := g.Changes(t.Context(), b.Revision, 10); !errors.Is(err, store.ErrCompacted) {
			t.Errorf("changes since the backup: %v, want %v", err, store.ErrCompacted)
		}
		g.reopen()
		if g.Epoch() != after.Epoch {
			t.Errorf("epoch %s when opened again, was %s", g.Epoch(), after.Epoch)
		}

		// It lives on: a tag at rest rests, generations do not fall back.
		r := g.add(allow("new", "db", policy.TCP, 9))
		if r != after.Revision+1 {
			t.Errorf("the first change is %d, after %d", r, after.Revision)
		}
		if tags := g.tags(); tags["new"] != 6 {
			t.Errorf("tag of a new app is %d; 1 to 3 and 5 are used, 4 rests", tags["new"])
		}
		l := g.lease("two", at("192.0.2.2:4789"))
		if l.Generation != 2 {
			t.Errorf("generation %d of a cell that comes back without its journal, after 1", l.Generation)
		}
	},

	// An agent of the original asks for the policies again only where the time of
	// their last change is later than the one it knows.
	"an agent that knows what came after the backup hears of the restore": func(t *testing.T, open Open) {
		f := furnished(t, open)
		b := f.export()
		updated := func(f *fixture) [2]time.Time {
			policies, err := f.LastUpdated(t.Context())
			f.must(err)
			groups, err := f.SecurityGroupsUpdated(t.Context())
			f.must(err)
			return [2]time.Time{policies, groups}
		}
		f.clock.Advance(time.Hour)
		f.add(allow("late", "db", policy.TCP, 1))
		f.must(f.PutSecurityGroup(t.Context(), group("late")))
		known := updated(f)
		g := start(t, open)
		g.clock.Advance(2 * time.Hour)
		g.must(g.Import(t.Context(), b))
		for i, now := range updated(g) {
			if !now.After(known[i]) {
				t.Errorf("last updated at %s, %s before the restore", now, known[i])
			}
		}
		// Nor does a clock that went back take it back.
		h := start(t, open)
		h.clock.Advance(-time.Hour)
		h.must(h.Import(t.Context(), b))
		for i, now := range updated(h) {
			if was := [2]time.Time{b.PoliciesUpdated, b.GroupsUpdated}[i]; !now.After(was) {
				t.Errorf("last updated at %s, %s in the backup", now, was)
			}
		}
	},

	"an import wants an empty store and a sound backup": func(t *testing.T, open Open) {
		f := furnished(t, open)
		good := f.export()
		if err := f.Import(t.Context(), good); !errors.Is(err, store.ErrConflict) || !strings.Contains(err.Error(), "not empty") {
			t.Errorf("into its own store: %v", err)
		}
		g := start(t, open)
		for name, spoil := range map[string]func(b *store.Backup){
			"a tag twice":             func(b *store.Backup) { b.Tags[1].Tag = b.Tags[0].Tag },
			"a tag that is none":      func(b *store.Backup) { b.Tags[0].Tag = 70000 },
			"an app without tag":      func(b *store.Backup) { b.Tags[0].App = "" },
			"a router in a policy":    func(b *store.Backup) { b.Tags[0].Type = "router" },
			"a group twice":           func(b *store.Backup) { b.SecurityGroups[1].GUID = b.SecurityGroups[0].GUID },
			"a bad policy":            func(b *store.Backup) { b.Policies[0].Destination.Ports.Start = 0 },
			"a foreign network":       func(b *store.Backup) { b.Cells[0].Subnet = netip.MustParsePrefix("10.1.2.0/24") },
			"a cell twice":            func(b *store.Backup) { b.Cells[1].Name = b.Cells[0].Name },
			"a container elsewhere":   func(b *store.Backup) { b.Endpoints[0].Address = netip.MustParseAddr("10.1.2.3") },
			"a container of nobody":   func(b *store.Backup) { b.Endpoints[0].Cell = "nobody" },
			"a space of no org":       func(b *store.Backup) { b.Spaces[0].Org = "nowhere" },
			"a route twice":           func(b *store.Backup) { b.Routes[1] = b.Routes[0] },
			"a route to nowhere":      func(b *store.Backup) { b.Routes[0].App = "" },
			"a domain that is none":   func(b *store.Backup) { b.Domains[0] = "*" },
			"an entry of audit twice": func(b *store.Backup) { b.Audit[1].ID = b.Audit[0].ID },
		} {
			_, b := f.written(good)
			spoil(b)
			if err := g.Import(t.Context(), b); err == nil {
				t.Errorf("%s: imported", name)
			}
			if left := g.export(); left.Revision != 0 || len(left.Policies)+len(left.Tags)+len(left.Cells)+len(left.Audit)+len(left.Orgs)+len(left.SecurityGroups)+len(left.Routes) > 0 || len(left.Domains) != 1 || left.Epoch != g.Epoch() {
				t.Fatalf("%s: left %+v", name, left)
			}
		}
		g.must(g.PutSecurityGroup(t.Context(), group("early")))
		if err := g.Import(t.Context(), good); !errors.Is(err, store.ErrConflict) || !strings.Contains(err.Error(), "not empty") {
			t.Errorf("beside a security group: %v", err)
		}
		g.must(g.DeleteSecurityGroup(t.Context(), "guid-early"))
		g.must(g.Import(t.Context(), good))
		// What this store had recorded by itself stands behind what it took over.
		record := g.export().Audit
		var last []api.Action
		for n, e := range record {
			if e.ID != uint64(n+1) {
				t.Errorf("entry %d has the id %d", n+1, e.ID)
			}
			if n >= len(good.Audit) {
				last = append(last, e.Action)
			}
		}
		same(t, "the store's own entries", last, []api.Action{api.GroupSet, api.GroupDelete, api.StoreImport})
	},

	// Four writers and a reader: what is exported is one revision's, whole.
	"an export is consistent under load": func(t *testing.T, open Open) {
		f := start(t, open)
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for w := range 4 {
			wg.Go(func() {
				app := policy.AppID("app" + string(rune('a'+w)))
				for i := uint16(1); ctx.Err() == nil && i < 1000; i++ {
					// Ends in the middle of a write when the test is over.
					if _, err := f.AddPolicies(ctx, []policy.Policy{allow(app, app, policy.TCP, i)}); err != nil && ctx.Err() == nil {
						t.Error(err)
					}
				}
			})
		}
		for range 20 {
			b := f.export()
			// Every write adds one policy and one entry of the record.
			if len(b.Policies) != int(b.Revision) || len(b.Audit) != int(b.Revision) {
				t.Errorf("at revision %d there are %d policies and %d entries", b.Revision, len(b.Policies), len(b.Audit))
			}
			f.written(b) // checks tags against policies
		}
		stop()
		wg.Wait()
	},
}
