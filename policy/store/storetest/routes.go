package storetest

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

// route is the route of an app, or of an address.
func route(name policy.Hostname, to string) policy.Route {
	if a, err := netip.ParseAddr(to); err == nil {
		return policy.Route{Name: name, Address: a}
	}
	return policy.Route{Name: name, App: policy.AppID(to)}
}

func (f *fixture) mapped(rs ...policy.Route) api.Revision {
	f.t.Helper()
	r, err := f.AddRoutes(f.t.Context(), rs, nil)
	f.must(err)
	return r
}

func (f *fixture) unmapped(rs ...policy.Route) api.Revision {
	f.t.Helper()
	r, err := f.RemoveRoutes(f.t.Context(), rs)
	f.must(err)
	return r
}

func (f *fixture) routes(filter store.RouteFilter) []policy.Route {
	f.t.Helper()
	rs, err := f.Routes(f.t.Context(), filter)
	f.must(err)
	return rs
}

var routeTests = map[string]func(*testing.T, Open){
	"routes are mapped and unmapped once each, under one revision with all else": func(t *testing.T, open Open) {
		f := start(t, open)
		web, blue, address := route("web.apps.internal", "web"), route("web.apps.internal", "blue"), route("x.apps.internal", "10.255.3.4")
		r0 := f.add(allow("web", "db", policy.TCP, 80))
		r1 := f.mapped(web, blue, route("a.apps.internal", "web"))
		if r1 != r0+1 {
			t.Errorf("revision %d after %d", r1, r0)
		}
		if again := f.mapped(web, blue); again != r1 {
			t.Errorf("mapped again: revision %d, want %d", again, r1)
		}
		r2 := f.mapped(address, web)
		f.reopen()
		want := []policy.Route{route("a.apps.internal", "web"), web, blue, address} // by name, then by age
		same(t, "all", f.routes(store.RouteFilter{}), want)
		same(t, "of an app", f.routes(store.RouteFilter{App: "web"}), []policy.Route{want[0], web})
		same(t, "of a name", f.routes(store.RouteFilter{Name: "web.apps.internal"}), []policy.Route{web, blue})
		same(t, "of both", f.routes(store.RouteFilter{Name: "web.apps.internal", App: "blue"}), []policy.Route{blue})
		same(t, "of nobody", f.routes(store.RouteFilter{App: "nobody\x00"}), []policy.Route{})
		same(t, "state, by age", f.state().Routes, []policy.Route{web, blue, want[0], address})
		r3 := f.unmapped(blue, route("web.apps.internal", "nobody"))
		if again := f.unmapped(blue); again != r3 || r3 != r2+1 {
			t.Errorf("unmapped at %d and again at %d, after %d", r3, again, r2)
		}
		same(t, "changes", f.since(r0), []api.Delta{
			{Revision: r1, RoutesSet: []policy.Route{web, blue, want[0]}},
			{Revision: r2, RoutesSet: []policy.Route{address}},
			{Revision: r3, RoutesRemoved: []policy.Route{blue}},
		})
		stats, err := f.Stats(t.Context())
		f.must(err)
		if stats.Routes != 3 {
			t.Errorf("%d routes are counted, want 3", stats.Routes)
		}
	},

	"an app's name lies in an internal domain, an address's anywhere": func(t *testing.T, open Open) {
		f := start(t, open)
		for _, name := range []policy.Hostname{"web.example.com", "a.web.apps.internal", "apps.internal", "web"} {
			r, err := f.AddRoutes(t.Context(), []policy.Route{route("ok.apps.internal", "web"), route(name, "web")}, nil)
			if !errors.Is(err, store.ErrNotFound) {
				t.Errorf("%s: mapped at %d, %v", name, r, err)
			}
		}
		if left := f.routes(store.RouteFilter{}); len(left) > 0 {
			t.Errorf("a refused request left %v", left)
		}
		f.mapped(route("web.example.com", "10.255.1.2"), route("0.web.apps.internal", "10.255.1.2"))
	},

	"a name is shared with those alone whom the caller may touch": func(t *testing.T, open Open) {
		f := start(t, open)
		f.mapped(route("web.apps.internal", "web"), route("web.apps.internal", "10.255.1.2"))
		mine := func(apps ...policy.AppID) func(policy.AppID) bool {
			return func(app policy.AppID) bool { return slices.Contains(apps, app) }
		}
		intruder := []policy.Route{route("web.apps.internal", "intruder")}
		if _, err := f.AddRoutes(t.Context(), intruder, mine("intruder")); !errors.Is(err, store.ErrNotYours) {
			t.Errorf("beside another's app: %v", err)
		}
		if _, err := f.AddRoutes(t.Context(), intruder, mine("web", "intruder")); err != nil {
			t.Errorf("beside one of the caller's: %v", err)
		}
		if _, err := f.AddRoutes(t.Context(), []policy.Route{route("new.apps.internal", "intruder")}, mine("intruder")); err != nil {
			t.Errorf("a name that nobody has: %v", err)
		}
	},

	"domains come and go, and not under a route": func(t *testing.T, open Open) {
		f := start(t, open)
		same(t, "at first", f.state().Domains, []policy.Hostname{policy.DefaultDomain})
		r1, err := f.AddDomain(t.Context(), "acme.internal")
		f.must(err)
		again, err := f.AddDomain(t.Context(), "acme.internal")
		f.must(err)
		if again != r1 {
			t.Errorf("added again: revision %d, want %d", again, r1)
		}
		f.mapped(route("web.acme.internal", "web"), route("x.y.acme.internal", "10.255.1.2"))
		if _, err := f.RemoveDomain(t.Context(), "acme.internal"); !errors.Is(err, store.ErrConflict) || !strings.Contains(err.Error(), "web.acme.internal -> web") {
			t.Errorf("removed with a route: %v", err)
		}
		f.unmapped(route("web.acme.internal", "web"))
		r2, err := f.RemoveDomain(t.Context(), "acme.internal")
		f.must(err)
		if _, err := f.RemoveDomain(t.Context(), "acme.internal"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("removed again: %v", err)
		}
		domains, err := f.Domains(t.Context())
		f.must(err)
		same(t, "at last", domains, []policy.Hostname{policy.DefaultDomain})
		same(t, "the last change", f.since(r2-1), []api.Delta{{Revision: r2, DomainsRemoved: []policy.Hostname{"acme.internal"}}})
	},

	"audit records routes and domains, but for what is registered": func(t *testing.T, open Open) {
		f := start(t, open)
		ctx := store.WithActor(t.Context(), store.Actor{Who: "alice", From: "192.0.2.77"})
		web, address := route("web.acme.internal", "web"), route("web.acme.internal", "10.255.1.2")
		_, err := f.AddDomain(ctx, "acme.internal")
		f.must(err)
		_, err = f.AddRoutes(ctx, []policy.Route{web, address, web}, nil)
		f.must(err)
		_, err = f.RemoveRoutes(ctx, []policy.Route{web, address, web})
		f.must(err)
		_, err = f.RemoveDomain(ctx, "acme.internal")
		f.must(err)
		entries, err := f.Audit(t.Context(), 0, 100)
		f.must(err)
		var got []string
		for _, e := range slices.Backward(entries) {
			got = append(got, fmt.Sprintf("%d %s %s %s: %s -> %s", e.Revision, e.Who, e.Action, e.Subject, e.Before, e.After))
		}
		text := `{"name":"web.acme.internal","app":"web"}`
		same(t, "entries", got, []string{
			`1 alice domain.add acme.internal:  -> "acme.internal"`,
			`2 alice route.map web.acme.internal -> web:  -> ` + text,
			`3 alice route.unmap web.acme.internal -> web: ` + text + ` -> `,
			`4 alice domain.remove acme.internal: "acme.internal" -> `,
		})
	},
}
