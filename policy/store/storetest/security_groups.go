package storetest

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"tulle/policy"
	"tulle/policy/store"
)

func (f *fixture) put(gs ...policy.SecurityGroup) {
	f.t.Helper()
	for _, g := range gs {
		f.must(f.PutSecurityGroup(f.t.Context(), g))
	}
}

// names lists what a filter finds, and where the next page begins.
func (f *fixture) names(filter store.GroupFilter) (names []string, next int64) {
	f.t.Helper()
	gs, next, err := f.SecurityGroups(f.t.Context(), filter)
	f.must(err)
	for _, g := range gs {
		names = append(names, g.Name)
	}
	return names, next
}

func (f *fixture) updated() time.Time {
	f.t.Helper()
	at, err := f.SecurityGroupsUpdated(f.t.Context())
	f.must(err)
	return at
}

// group is a group that holds for the running apps of the spaces.
func group(name string, spaces ...string) policy.SecurityGroup {
	return policy.SecurityGroup{GUID: "guid-" + name, Name: name, RunningSpaces: spaces, Rules: []policy.SecurityRule{
		{Protocol: "tcp", Destination: "10.20.0.0/24", Ports: "5432", Description: "für \"" + name + "\" <&>\u2028", Log: true},
		{Protocol: "icmp", Destination: "0.0.0.0/0", Type: -1, Code: 255},
	}}
}

var groupTests = map[string]func(*testing.T, Open){
	"a security group is stored whole, replaced whole, deleted once": func(t *testing.T, open Open) {
		f := start(t, open)
		if at := f.updated(); at.UnixNano() != 0 {
			t.Errorf("updated %s before there was anything", at)
		}
		a := group("a", "s1", "s2", "s1")
		a.StagingSpaces, a.StagingDefault = []string{"s3"}, true
		f.put(a, group("b"))
		f.reopen()
		got, err := f.SecurityGroup(t.Context(), a.GUID)
		f.must(err)
		same(t, "stored", got, a)
		a.Name, a.Rules, a.StagingSpaces, a.RunningSpaces, a.StagingDefault = "A", nil, nil, []string{"s9"}, false
		f.put(a)
		gs, _, err := f.SecurityGroups(t.Context(), store.GroupFilter{All: true})
		f.must(err)
		same(t, "replaced, in its place", gs, []policy.SecurityGroup{a, group("b")})
		if found, _ := f.names(store.GroupFilter{Spaces: []string{"s1", "s2", "s3"}}); found != nil {
			t.Errorf("of its former spaces: %v", found)
		}
		f.must(f.DeleteSecurityGroup(t.Context(), a.GUID))
		if err := f.DeleteSecurityGroup(t.Context(), a.GUID); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("deleted again: %v, want %v", err, store.ErrNotFound)
		}
		if _, err := f.SecurityGroup(t.Context(), a.GUID); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("read after its deletion: %v, want %v", err, store.ErrNotFound)
		}
	},
	"the defaults and those of the spaces are selected": func(t *testing.T, open Open) {
		f := start(t, open)
		running, staging, staged := group("running"), group("staging"), group("staged")
		running.RunningDefault, staging.StagingDefault, staged.StagingSpaces = true, true, []string{"s2"}
		f.put(group("one", "s1"), running, group("two", "s2", "s1"), staging, staged, group("nobody's"))
		for _, tt := range []struct {
			spaces []string
			want   []string
		}{
			{nil, []string{"running", "staging"}},
			{[]string{""}, []string{"running", "staging"}},
			{[]string{"s1"}, []string{"one", "running", "two", "staging"}},
			{[]string{"s2", "s9", "s2"}, []string{"running", "two", "staging", "staged"}},
			{[]string{"s2", "s1"}, []string{"one", "running", "two", "staging", "staged"}},
		} {
			if got, next := f.names(store.GroupFilter{Spaces: tt.spaces}); !slices.Equal(got, tt.want) || next != 0 {
				t.Errorf("of %q: %v and %d, want %v and 0", tt.spaces, got, next, tt.want)
			}
		}
	},
	"pages follow each other to the end": func(t *testing.T, open Open) {
		f := start(t, open)
		for i := range 7 {
			f.put(group(fmt.Sprint(i), "s1"))
		}
		f.must(f.DeleteSecurityGroup(t.Context(), "guid-3"))
		f.put(group("3", "s1")) // comes last now
		want := []string{"0", "1", "2", "4", "5", "6", "3"}
		for limit := range 9 {
			var got []string
			pages := 0
			for from := int64(0); from != 0 || pages == 0; pages++ {
				var page []string
				page, from = f.names(store.GroupFilter{Spaces: []string{"s1"}, From: from, Limit: limit})
				if limit > 0 && len(page) > limit {
					t.Errorf("a page of %d, the limit is %d", len(page), limit)
				}
				got = append(got, page...)
			}
			if limit > 0 && pages != (len(want)+limit-1)/limit || limit == 0 && pages != 1 || !slices.Equal(got, want) {
				t.Errorf("by %d: %v in %d pages, want %v", limit, got, pages, want)
			}
		}
		if got, next := f.names(store.GroupFilter{All: true, From: 1 << 60}); len(got) != 0 || next != 0 {
			t.Errorf("behind the end: %v and %d", got, next)
		}
	},
	"the time of the last change grows with each change, and with changes alone": func(t *testing.T, open Open) {
		f := start(t, open)
		last := f.updated()
		step := func(what string, changes bool, write func() error) {
			t.Helper()
			f.must(write())
			at := f.updated()
			if at.After(last) != changes {
				t.Errorf("%s: updated %s after %s", what, at, last)
			}
			last = at
		}
		put := func(g policy.SecurityGroup) func() error {
			return func() error { return f.PutSecurityGroup(t.Context(), g) }
		}
		replace := func(gs ...policy.SecurityGroup) func() error {
			return func() error { return f.ReplaceSecurityGroups(t.Context(), gs) }
		}
		step("a new group", true, put(group("a")))
		if !last.Equal(f.clock.Now()) {
			t.Errorf("updated %s, want %s", last, f.clock.Now())
		}
		step("the same", false, put(group("a")))
		f.clock.Advance(-time.Hour)
		step("another, the clock being set back", true, put(group("a", "s1")))
		step("all the same", false, replace(group("a", "s1")))
		step("one more", true, replace(group("a", "s1"), group("b")))
		step("one less", true, replace(group("b")))
		step("deleted", true, func() error { return f.DeleteSecurityGroup(t.Context(), "guid-b") })
		step("none, again", false, replace())
		if err := f.DeleteSecurityGroup(t.Context(), "guid-b"); !errors.Is(err, store.ErrNotFound) || !f.updated().Equal(last) {
			t.Errorf("deleting nothing: %v, updated %s", err, f.updated())
		}
	},
	"a replacement is one change": func(t *testing.T, open Open) {
		f := start(t, open)
		f.put(group("a", "s1"), group("b", "s1"), group("c", "s1"))
		changed := group("b", "s2")
		f.must(f.ReplaceSecurityGroups(t.Context(), []policy.SecurityGroup{group("d", "s1"), changed, group("c", "s1")}))
		gs, _, err := f.SecurityGroups(t.Context(), store.GroupFilter{All: true})
		f.must(err)
		same(t, "groups", gs, []policy.SecurityGroup{changed, group("c", "s1"), group("d", "s1")})
		if got, _ := f.names(store.GroupFilter{Spaces: []string{"s1"}}); !slices.Equal(got, []string{"c", "d"}) {
			t.Errorf("of s1: %v", got)
		}
		if got := f.state().Revision; got != 0 {
			t.Errorf("the cells' revision moved to %d", got)
		}
	},
	"each change is in the audit record, the same again is not": func(t *testing.T, open Open) {
		f := start(t, open)
		f.put(group("a"), group("a"), group("a", "s1"))
		f.must(f.ReplaceSecurityGroups(t.Context(), []policy.SecurityGroup{group("a", "s1"), group("b")}))
		f.must(f.DeleteSecurityGroup(t.Context(), "guid-b"))
		for range 2 {
			_, err := f.Tag(t.Context(), "INGRESS_ROUTER", "router")
			f.must(err)
		}
		entries, err := f.Audit(t.Context(), 0, 100)
		f.must(err)
		var did []string
		for _, e := range entries {
			did = append(did, fmt.Sprintf("%s %s %t %t", e.Action, e.Subject, e.Before != nil, e.After != nil))
		}
		same(t, "the record, newest first", did, []string{"tag.give INGRESS_ROUTER false true", "group.delete guid-b true false",
			"group.set guid-b false true", "group.set guid-a true true", "group.set guid-a false true"})
	},
}
