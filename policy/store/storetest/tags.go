package storetest

import (
	"errors"
	"strings"
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
	"a released tag rests until its release is in force everywhere": func(t *testing.T, open Open) {
		f := start(t, open, func(c *Config) { c.TagRest = 0; c.MaxTag = 4 })
		tagOf := func(app policy.AppID) policy.Tag {
			t.Helper()
			for _, tag := range f.state().Tags {
				if tag.App == app {
					return tag.Tag
				}
			}
			return policy.NoTag
		}
		first := f.add(allow("web", "db", policy.TCP, 1))
		f.acknowledged.Store(int64(first)) // all that there is so far, but not what comes
		released := f.remove(allow("web", "db", policy.TCP, 1))
		stats, err := f.Stats(t.Context())
		f.must(err)
		if stats.Tags != 0 || stats.Resting != 2 {
			t.Errorf("%d in use, %d resting; want 0 and 2", stats.Tags, stats.Resting)
		}
		f.clock.Advance(1000 * time.Hour) // time alone does not do
		f.add(allow("a", "b", policy.TCP, 1))
		if a, b := tagOf("a"), tagOf("b"); a != 3 || b != 4 {
			t.Fatalf("tags %d and %d while 1 and 2 rest", a, b)
		}
		_, err = f.AddPolicies(t.Context(), []policy.Policy{allow("c", "c", policy.TCP, 1)})
		if !errors.Is(err, store.ErrTagsExhausted) || !strings.Contains(err.Error(), "of the 4 that a VXLAN group policy id can be, 2 are in use and 2 rest") {
			t.Errorf("with all tags used or resting: %v", err)
		}
		f.reopen() // it is stored
		if _, err = f.AddPolicies(t.Context(), []policy.Policy{allow("c", "c", policy.TCP, 1)}); !errors.Is(err, store.ErrTagsExhausted) {
			t.Errorf("opened again: %v", err)
		}
		f.acknowledged.Store(int64(released))
		f.add(allow("c", "c", policy.TCP, 1))
		if got := tagOf("c"); got != 1 {
			t.Errorf("tag %d once the release is known, want the lowest, 1", got)
		}
		// Of two releases each rests for its own.
		f.remove(allow("a", "b", policy.TCP, 1))
		f.add(allow("d", "d", policy.TCP, 1))
		if got := tagOf("d"); got != 2 {
			t.Errorf("tag %d, want 2: 3 and 4 rest", got)
		}
	},
	"without anybody to ask no tag is given again": func(t *testing.T, open Open) {
		clock := NewClock()
		c := standard(clock)
		c.TagRest = 0
		s, _ := open(t, c)
		for n, p := range []policy.Policy{allow("web", "web", policy.TCP, 1), allow("db", "db", policy.TCP, 1)} {
			if _, err := s.AddPolicies(t.Context(), []policy.Policy{p}); err != nil {
				t.Fatal(err)
			}
			tags, err := s.Tags(t.Context())
			if err != nil || len(tags) != 1 || int(tags[0].Tag) != n+1 {
				t.Fatalf("tags %v, %v", tags, err)
			}
			if _, err := s.RemovePolicies(t.Context(), []policy.Policy{p}); err != nil {
				t.Fatal(err)
			}
		}
	},
}
