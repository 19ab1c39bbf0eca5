package storetest

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

// host is the n-th container's address in a lease.
func host(l api.Lease, n byte) netip.Addr {
	b := l.Subnet.Addr().As4()
	b[3] = n
	return netip.AddrFrom4(b)
}

func named(org, space, name string) api.AppRef { return api.AppRef{Org: org, Space: space, Name: name} }

// twoCells gives two cells their leases.
func twoCells(f *fixture) (a, b api.Lease) {
	return f.lease("a", at("192.0.2.1:1")), f.lease("b", at("192.0.2.2:1"))
}

var endpointTests = map[string]func(*testing.T, Open){
	"the change holds only what really changed": func(t *testing.T, open Open) {
		f := start(t, open)
		l, _ := twoCells(f)
		reg := func(container string, n byte, app policy.AppID, incarnation uint64) api.EndpointRegistration {
			return api.EndpointRegistration{Container: container, Address: host(l, n), App: api.AppRef{GUID: app}, Instance: "0", Incarnation: incarnation}
		}
		as := func(r api.EndpointRegistration) api.Endpoint {
			return api.Endpoint{Cell: "a", Container: r.Container, Address: r.Address, App: r.App.GUID, Instance: "0", Generation: 1, Incarnation: r.Incarnation}
		}
		key := func(r api.EndpointRegistration) api.EndpointKey {
			return api.EndpointKey{Cell: "a", Container: r.Container, Address: r.Address, Generation: 1, Incarnation: r.Incarnation}
		}
		sequence := uint64(0)
		set := func(regs ...api.EndpointRegistration) []api.Delta {
			t.Helper()
			before := f.state().Revision
			sequence++
			answer := f.endpoints("a", api.EndpointsRequest{Generation: 1, Sequence: sequence, Endpoints: regs})
			changes := f.since(before)
			if answer.Revision != before+api.Revision(len(changes)) || answer.Epoch != f.Epoch() {
				t.Errorf("answer %+v after revision %d and %d changes", answer, before, len(changes))
			}
			for i := range changes {
				changes[i].Revision = 0
			}
			return changes
		}
		k1, k2, k3 := reg("k1", 1, "web", 1), reg("k2", 2, "web", 2), reg("k3", 3, "db", 3)
		same(t, "first", set(k1, k2, k3), []api.Delta{{EndpointsSet: []api.Endpoint{as(k1), as(k2), as(k3)}}})
		same(t, "the same list in another order", set(k3, k1, k2), []api.Delta{})
		same(t, "one goes", set(k1, k2), []api.Delta{{EndpointsRemoved: []api.EndpointKey{key(k3)}}})
		moved := reg("k2", 9, "web", 2)
		same(t, "one has another address", set(k1, moved), []api.Delta{{
			EndpointsRemoved: []api.EndpointKey{key(k2)}, EndpointsSet: []api.Endpoint{as(moved)}}})
		again := reg("k1", 1, "web", 7)
		same(t, "one started again", set(again, moved), []api.Delta{{
			EndpointsRemoved: []api.EndpointKey{key(k1)}, EndpointsSet: []api.Endpoint{as(again)}}})
		renamed := reg("k1", 1, "db", 7)
		same(t, "one has another app", set(renamed, moved), []api.Delta{{EndpointsSet: []api.Endpoint{as(renamed)}}})
		x, y := reg("k1", 9, "db", 7), reg("k2", 1, "web", 2)
		same(t, "two swap addresses", set(x, y), []api.Delta{{
			EndpointsRemoved: []api.EndpointKey{key(renamed), key(moved)}, EndpointsSet: []api.Endpoint{as(x), as(y)}}})
		f.reopen()
		all, err := f.Endpoints(t.Context())
		f.must(err)
		same(t, "stored", all, api.Endpoints{Endpoints: []api.Endpoint{as(x), as(y)}, Revision: f.state().Revision})
		same(t, "all go", set(), []api.Delta{{EndpointsRemoved: []api.EndpointKey{key(x), key(y)}}})
	},
	"an older list changes nothing": func(t *testing.T, open Open) {
		f := start(t, open)
		l, _ := twoCells(f)
		one := []api.EndpointRegistration{{Container: "k", Address: host(l, 1), App: api.AppRef{GUID: "web"}}}
		answer := f.endpoints("a", api.EndpointsRequest{Generation: 1, Sequence: 7, Endpoints: one})
		for _, sequence := range []uint64{7, 6, 0} {
			same(t, "answer", f.endpoints("a", api.EndpointsRequest{Generation: 1, Sequence: sequence}),
				api.EndpointsResponse{Epoch: answer.Epoch, Revision: answer.Revision, Apps: map[string]policy.AppID{"k": "web"}})
		}
		if len(f.state().Endpoints) != 1 {
			t.Errorf("endpoints %+v", f.state().Endpoints)
		}
	},
	"what is wrong is refused, the rest stands": func(t *testing.T, open Open) {
		f := start(t, open)
		a, b := twoCells(f)
		app := api.AppRef{GUID: "web"}
		answer := f.endpoints("a", api.EndpointsRequest{Generation: 1, Sequence: 1, Endpoints: []api.EndpointRegistration{
			{Container: "good", Address: host(a, 254), App: app},
			{Container: "same address", Address: host(a, 254), App: app},
			{Container: "other cell's", Address: host(b, 1), App: app},
			{Container: "tunnel end", Address: host(a, 0), App: app},
			{Container: "last", Address: host(a, 255), App: app},
			{Container: "no address", App: app},
			{Container: "six", Address: netip.MustParseAddr("::1"), App: app},
			{Container: "no app", Address: host(a, 1)},
			{Container: "twice", Address: host(a, 2), App: app},
			{Container: "twice", Address: host(a, 3), App: app},
			{Container: "", Address: host(a, 4), App: app},
			{Container: "big", Address: host(a, 5), App: app, Incarnation: 1 << 32},
			{Container: "also good", Address: host(a, 6), App: app},
		}})
		same(t, "apps", answer.Apps, map[string]policy.AppID{"good": "web", "also good": "web"})
		for container, word := range map[string]string{"same address": "good's", "other cell's": "lease", "tunnel end": "lease",
			"last": "lease", "no address": "lease", "six": "lease", "no app": "neither", "twice": "twice", "": "no id", "big": "range"} {
			if !strings.Contains(answer.Refused[container], word) {
				t.Errorf("%q refused with %q, want something about %q", container, answer.Refused[container], word)
			}
		}
		if len(answer.Refused) != 10 || len(f.state().Endpoints) != 2 {
			t.Errorf("refused %v, stored %v", answer.Refused, f.state().Endpoints)
		}
	},
	"lease and generation are needed": func(t *testing.T, open Open) {
		f := start(t, open)
		twoCells(f)
		f.must(f.AddPeer(t.Context(), silk("s", "192.0.2.9", "10.255.0.1/32")))
		for cell, c := range map[string]struct {
			generation uint64
			want       error
		}{"nobody": {1, store.ErrNotFound}, "s": {1, store.ErrNotFound}, "a": {2, store.ErrConflict}, "b": {0, store.ErrConflict}} {
			_, err := f.SetEndpoints(t.Context(), cell, api.EndpointsRequest{Generation: c.generation, Sequence: 1})
			if !errors.Is(err, c.want) {
				t.Errorf("cell %s, generation %d: %v, want %v", cell, c.generation, err, c.want)
			}
		}
		if _, err := f.SetEndpoints(t.Context(), "a", api.EndpointsRequest{Generation: 1, Sequence: 1 << 63}); !errors.Is(err, store.ErrConflict) {
			t.Errorf("sequence out of range: %v", err)
		}
	},
	"a name gets its GUID once": func(t *testing.T, open Open) {
		f := start(t, open)
		a, b := twoCells(f)
		first := f.endpoints("a", api.EndpointsRequest{Generation: 1, Sequence: 1, Endpoints: []api.EndpointRegistration{
			{Container: "k1", Address: host(a, 1), App: named("acme", "prod", "web")},
			{Container: "k2", Address: host(a, 2), App: named("acme", "test", "web")},
			{Container: "k3", Address: host(a, 3), App: named("other", "prod", "web")},
			{Container: "k4", Address: host(a, 4), App: api.AppRef{Name: "web"}},
			{Container: "k5", Address: host(a, 5), App: named("default", "default", "web")},
		}}).Apps
		guids := map[policy.AppID]bool{}
		for _, g := range first {
			guids[g] = true
		}
		if len(guids) != 4 || first["k4"] != first["k5"] {
			t.Fatalf("apps %v, want one GUID for each org, space and name", first)
		}
		f.reopen()
		second := f.endpoints("b", api.EndpointsRequest{Generation: 1, Sequence: 1, Endpoints: []api.EndpointRegistration{
			{Container: "k9", Address: host(b, 1), App: named("acme", "prod", "web")}}}).Apps
		if second["k9"] != first["k1"] {
			t.Errorf("the same app is %s on one cell and %s on the other", first["k1"], second["k9"])
		}
		apps, err := f.Apps(t.Context())
		f.must(err)
		var got []string
		for _, app := range apps {
			if app.SpaceGUID == "" || app.OrgGUID == "" {
				t.Errorf("app %+v has no GUID of its space or org", app)
			}
			got = append(got, app.Org+"/"+app.Space+"/"+app.Name)
			if want := map[bool]int{true: 2, false: 1}[app.GUID == first["k1"] || app.GUID == first["k4"]]; app.Instances != want {
				t.Errorf("%s has %d instances, want %d", got[len(got)-1], app.Instances, want)
			}
		}
		same(t, "apps", got, []string{"acme/prod/web", "acme/test/web", "default/default/web", "other/prod/web"})
	},
	"an app that came by its GUID keeps it, and its space": func(t *testing.T, open Open) {
		f := start(t, open)
		l, _ := twoCells(f)
		sequence := uint64(0)
		try := func(ref api.AppRef) string {
			sequence++
			answer := f.endpoints("a", api.EndpointsRequest{Generation: 1, Sequence: sequence, Endpoints: []api.EndpointRegistration{
				{Container: "k", Address: host(l, 1), App: ref}}})
			return string(answer.Apps["k"]) + answer.Refused["k"]
		}
		full := named("acme", "prod", "web")
		full.GUID = "g-1"
		for _, ref := range []api.AppRef{{GUID: "g-1"}, full, {GUID: "g-1"}, full, named("acme", "prod", "web")} {
			if got := try(ref); got != "g-1" {
				t.Errorf("%+v: %q, want g-1", ref, got)
			}
		}
		stolen := named("evil", "mine", "web")
		stolen.GUID = "g-1"
		second := full
		second.GUID = "g-2"
		for _, ref := range []api.AppRef{stolen, second} {
			if got := try(ref); !strings.Contains(got, "g-1") || got == "g-1" {
				t.Errorf("%+v: %q, want a refusal that names g-1", ref, got)
			}
		}
	},
}
