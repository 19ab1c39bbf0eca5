package storetest

import (
	"errors"
	"testing"
	"time"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

// idTagTests: tags that are asked for by id, not by policy.
var idTagTests = map[string]func(*testing.T, Open){
	"a tag asked for by id is made once and stays": func(t *testing.T, open Open) {
		f := start(t, open)
		f.add(allow("web", "db", policy.TCP, 1))
		before := f.state().Revision
		router := api.AppTag{App: "INGRESS_ROUTER", Tag: 3, Type: "router"}
		for range 2 {
			got, err := f.Tag(t.Context(), "INGRESS_ROUTER", "router")
			f.must(err)
			same(t, "tag", got, router)
		}
		same(t, "change", f.since(before), []api.Delta{{Revision: before + 1, TagsSet: []api.AppTag{router}}})
		f.remove(allow("web", "db", policy.TCP, 1))
		f.reopen()
		same(t, "left without policies", f.state().Tags, []api.AppTag{router})
	},
	"an app's tag by id is the one its policies have": func(t *testing.T, open Open) {
		f := start(t, open)
		f.add(allow("web", "db", policy.TCP, 1))
		for _, kind := range []string{"", api.TypeApp} {
			got, err := f.Tag(t.Context(), "db", kind)
			f.must(err)
			same(t, "tag", got, api.AppTag{App: "db", Tag: 2})
		}
		if got := f.state().Revision; got != 1 {
			t.Errorf("asking made revision %d", got)
		}
	},
	"an id has one type": func(t *testing.T, open Open) {
		f := start(t, open)
		f.add(allow("web", "db", policy.TCP, 1))
		_, err := f.Tag(t.Context(), "INGRESS_ROUTER", "router")
		f.must(err)
		l := f.lease("c1", at("192.0.2.1:4789"))
		f.endpoints("c1", api.EndpointsRequest{Generation: 1, Sequence: 1, Endpoints: []api.EndpointRegistration{{
			Container: "k", Address: l.Subnet.Addr().Next(), App: api.AppRef{GUID: "running"}, Incarnation: 1}}})
		before := *f.state()
		for id, kind := range map[policy.AppID]string{"INGRESS_ROUTER": "app", "web": "router", "running": "router"} {
			if _, err := f.Tag(t.Context(), id, kind); !errors.Is(err, store.ErrConflict) {
				t.Errorf("%s as %s: %v, want %v", id, kind, err, store.ErrConflict)
			}
		}
		if _, err := f.AddPolicies(t.Context(), []policy.Policy{allow("web", "INGRESS_ROUTER", policy.TCP, 2)}); !errors.Is(err, store.ErrConflict) {
			t.Errorf("a policy to a router: %v, want %v", err, store.ErrConflict)
		}
		same(t, "state", *f.state(), before)
	},
	"a freed tag may change its type": func(t *testing.T, open Open) {
		f := start(t, open)
		f.add(allow("web", "db", policy.TCP, 1))
		f.remove(allow("web", "db", policy.TCP, 1))
		f.clock.Advance(time.Minute)
		got, err := f.Tag(t.Context(), "INGRESS_ROUTER", "router")
		f.must(err)
		same(t, "tag", got, api.AppTag{App: "INGRESS_ROUTER", Tag: 1, Type: "router"})
	},
	"no tag left by id": func(t *testing.T, open Open) {
		f := start(t, open, func(c *Config) { c.MaxTag = 1 })
		_, err := f.Tag(t.Context(), "one", "router")
		f.must(err)
		if _, err := f.Tag(t.Context(), "two", "router"); !errors.Is(err, store.ErrTagsExhausted) {
			t.Errorf("%v, want %v", err, store.ErrTagsExhausted)
		}
	},
}
