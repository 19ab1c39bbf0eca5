package storetest

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

var policyTests = map[string]func(*testing.T, Open){
	"a fresh store is empty at revision 0": func(t *testing.T, open Open) {
		f := start(t, open)
		s := f.state()
		if s.Epoch == "" || s.Epoch != f.Epoch() {
			t.Errorf("epoch of the state %q, of the store %q", s.Epoch, f.Epoch())
		}
		same(t, "state", *s, store.State{Epoch: f.Epoch(), Domains: []policy.Hostname{policy.DefaultDomain}})
		same(t, "changes", f.since(0), []api.Delta{})
	},
	"policies are stored once and survive": func(t *testing.T, open Open) {
		f := start(t, open)
		epoch := f.Epoch()
		web := allow("web", "db", policy.TCP, 5432)
		span := allow("web", "db", policy.UDP, 80, 90)
		if r := f.add(web, span, web); r != 1 {
			t.Errorf("revision %d after the first change, want 1", r)
		}
		if r := f.add(web); r != 1 {
			t.Errorf("revision %d after adding what is there, want 1 still", r)
		}
		f.reopen()
		if f.Epoch() != epoch {
			t.Errorf("epoch changed from %q to %q by opening again", epoch, f.Epoch())
		}
		s := f.state()
		same(t, "policies", s.Policies, []policy.Policy{web, span})
		if s.Revision != 1 {
			t.Errorf("revision %d after opening again, want 1", s.Revision)
		}
	},
	"only the exact policy is removed": func(t *testing.T, open Open) {
		f := start(t, open)
		long, short := allow("a", "b", policy.TCP, 8080, 8090), allow("a", "b", policy.TCP, 8080, 8085)
		f.add(long, short)
		r := f.remove(short, allow("a", "b", policy.TCP, 1), allow("x", "y", policy.UDP, 1))
		same(t, "policies", f.state().Policies, []policy.Policy{long})
		same(t, "change", f.since(r-1), []api.Delta{{Revision: r, PoliciesRemoved: []api.Policy{api.FromDomain(short)}}})
		if again := f.remove(short); again != r {
			t.Errorf("removing nothing made revision %d of %d", again, r)
		}
	},
	"filters": func(t *testing.T, open Open) {
		f := start(t, open)
		ab, bc, ca := allow("a", "b", policy.TCP, 1), allow("b", "c", policy.TCP, 2), allow("c", "a", policy.UDP, 3)
		f.add(ab, bc, ca)
		ids := func(s ...policy.AppID) []policy.AppID { return append([]policy.AppID{}, s...) }
		for name, c := range map[string]struct {
			filter store.Filter
			want   []policy.Policy
		}{
			"all":                     {store.Filter{}, []policy.Policy{ab, bc, ca}},
			"either end":              {store.Filter{IDs: ids("a")}, []policy.Policy{ab, ca}},
			"ids beat the rest":       {store.Filter{IDs: ids("a"), Sources: ids("b")}, []policy.Policy{ab, ca}},
			"sources":                 {store.Filter{Sources: ids("a", "b")}, []policy.Policy{ab, bc}},
			"destinations":            {store.Filter{Destinations: ids("a")}, []policy.Policy{ca}},
			"sources and destination": {store.Filter{Sources: ids("a", "c"), Destinations: ids("a")}, []policy.Policy{ca}},
			"given but empty":         {store.Filter{IDs: ids()}, nil},
			"the empty name":          {store.Filter{IDs: ids("")}, nil},
			"quotes are letters":      {store.Filter{Sources: ids(`a"`, `'a'`, "a%")}, nil},
		} {
			got, err := f.Policies(t.Context(), c.filter)
			f.must(err)
			same(t, name, got, c.want)
		}
		many := make([]policy.AppID, 40_000) // above the parameters a database takes
		for i := range many {
			many[i] = policy.AppID(fmt.Sprint("app-", i))
		}
		many[39_999] = "c"
		got, err := f.Policies(t.Context(), store.Filter{Sources: many})
		f.must(err)
		same(t, "40,000 sources", got, []policy.Policy{ca})
	},
	"the time of the last update grows with every create and delete": func(t *testing.T, open Open) {
		f := start(t, open)
		last := func() time.Time {
			u, err := f.LastUpdated(t.Context())
			f.must(err)
			return u
		}
		p := allow("a", "b", policy.TCP, 1)
		f.add(p)
		first := last()
		if !first.Equal(f.clock.Now()) {
			t.Errorf("last updated %s, want %s", first, f.clock.Now())
		}
		f.add(p) // nothing new, at the same time
		second := last()
		f.clock.Advance(-time.Hour)
		f.remove(p)
		third := last()
		if !second.After(first) || !third.After(second) {
			t.Errorf("last updated went %s, %s, %s; want each later", first, second, third)
		}
	},
}

var tagTests = map[string]func(*testing.T, Open){
	"both ends get the lowest tags, and keep them while a policy names them": func(t *testing.T, open Open) {
		f := start(t, open)
		r := f.add(allow("web", "db", policy.TCP, 1))
		same(t, "tags", f.tags(), map[policy.AppID]policy.Tag{"web": 1, "db": 2})
		same(t, "change", f.since(r-1), []api.Delta{{
			Revision: r, PoliciesAdded: []api.Policy{api.FromDomain(allow("web", "db", policy.TCP, 1))},
			TagsSet: []api.AppTag{{App: "web", Tag: 1}, {App: "db", Tag: 2}},
		}})
		f.add(allow("db", "cache", policy.UDP, 2), allow("web", "web", policy.TCP, 3))
		r = f.remove(allow("web", "db", policy.TCP, 1))
		same(t, "tags", f.tags(), map[policy.AppID]policy.Tag{"web": 1, "db": 2, "cache": 3})
		if ds := f.since(r - 1); len(ds[0].TagsRemoved) != 0 {
			t.Errorf("tags removed though policies are left: %v", ds[0].TagsRemoved)
		}
		r = f.remove(allow("db", "cache", policy.UDP, 2))
		same(t, "tags", f.tags(), map[policy.AppID]policy.Tag{"web": 1})
		same(t, "removed", f.since(r - 1)[0].TagsRemoved, []policy.AppID{"db", "cache"})
	},
	"a released tag rests, then is the lowest again": func(t *testing.T, open Open) {
		f := start(t, open)
		f.add(allow("a", "b", policy.TCP, 1), allow("c", "d", policy.TCP, 1))
		f.remove(allow("a", "b", policy.TCP, 1))
		f.add(allow("e", "c", policy.TCP, 1))
		if got := f.tags()["e"]; got != 5 {
			t.Errorf("tag %d right after tags 1 and 2 were released, want 5", got)
		}
		f.clock.Advance(time.Minute - time.Microsecond)
		f.reopen() // the rest is by stored time
		f.add(allow("f", "c", policy.TCP, 1))
		f.clock.Advance(time.Microsecond)
		f.add(allow("g", "h", policy.TCP, 1), allow("i", "c", policy.TCP, 1))
		same(t, "tags", f.tags(), map[policy.AppID]policy.Tag{"c": 3, "d": 4, "e": 5, "f": 6, "g": 1, "h": 2, "i": 7})
	},
	"the limit is that of the wire": func(t *testing.T, open Open) {
		s, err := start(t, open).Stats(t.Context())
		if err != nil || s.TagLimit != 65535 {
			t.Errorf("limit %d, %v; want 65535", s.TagLimit, err)
		}
	},
	"the last tag is given, one more is refused whole": func(t *testing.T, open Open) {
		const last = 300
		f := start(t, open, func(c *Config) { c.MaxTag = last })
		ps := make([]policy.Policy, last)
		for i := range ps { // a star of 301 apps
			ps[i] = allow("hub", policy.AppID(fmt.Sprint("app-", i)), policy.TCP, 1)
		}
		_, err := f.AddPolicies(t.Context(), ps)
		if !errors.Is(err, store.ErrTagsExhausted) {
			t.Fatalf("%d apps: %v, want %v", last+1, err, store.ErrTagsExhausted)
		}
		same(t, "state after the refusal", *f.state(), store.State{Epoch: f.Epoch(), Domains: []policy.Hostname{policy.DefaultDomain}})
		f.add(ps[:last-1]...)
		if tag := f.tags()[ps[last-2].Destination]; tag != last {
			t.Errorf("the last app has tag %d, want %d", tag, last)
		}
		late := ps[last-1]
		try := func() error {
			_, err := f.AddPolicies(t.Context(), []policy.Policy{late})
			return err
		}
		if err := try(); !errors.Is(err, store.ErrTagsExhausted) {
			t.Errorf("one app more: %v, want %v", err, store.ErrTagsExhausted)
		}
		f.remove(ps[7])
		if err := try(); !errors.Is(err, store.ErrTagsExhausted) {
			t.Errorf("while the only free tag rests: %v, want %v", err, store.ErrTagsExhausted)
		}
		f.clock.Advance(time.Minute)
		f.must(try())
		if tag := f.tags()[late.Destination]; tag != 9 {
			t.Errorf("the freed tag was 9, given was %d", tag)
		}
	},
}
