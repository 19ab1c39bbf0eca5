package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

var togetherTests = map[string]func(*testing.T, Open){
	"writes at once are as if one after the other":  writesAtOnce,
	"a write that is given up takes no other along": givenUpWrites,
}

// writesAtOnce has many writers, some of which must fail: every one that is
// answered has a revision of its own, with its own change, and those that failed
// left nothing behind.
func writesAtOnce(t *testing.T, open Open) {
	const writers, each, tags = 16, 12, 150
	f := start(t, open, func(c *Config) { c.MaxTag = tags; c.History = 10_000 })
	before := f.state().Revision
	var mu sync.Mutex // guards made and refused
	made := map[api.Revision]policy.Policy{}
	refused := 0
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for n := range each {
				// Two new apps each: the tags do not suffice for all.
				p := policy.Policy{Source: policy.AppID(fmt.Sprintf("s-%d-%d", w, n)), Destination: policy.AppID(fmt.Sprintf("d-%d-%d", w, n)),
					Protocol: policy.TCP, Ports: policy.PortRange{Start: 1, End: 1}}
				rev, err := f.AddPolicies(t.Context(), []policy.Policy{p})
				mu.Lock()
				switch {
				case err == nil && made[rev] != (policy.Policy{}):
					t.Errorf("revision %d is that of %v and of %v", rev, made[rev], p)
				case err == nil:
					made[rev] = p
				case errors.Is(err, store.ErrTagsExhausted):
					refused++
				default:
					t.Error(err)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(made) != tags/2 || refused != writers*each-tags/2 {
		t.Errorf("%d writes were made and %d refused, want %d and %d", len(made), refused, tags/2, writers*each-tags/2)
	}
	changes, err := f.Changes(t.Context(), before, 10_000)
	f.must(err)
	if len(changes) != len(made) {
		t.Errorf("history has %d changes, %d were answered", len(changes), len(made))
	}
	for _, d := range changes {
		if want := api.FromDomain(made[d.Revision]); len(d.PoliciesAdded) != 1 || d.PoliciesAdded[0] != want || len(d.TagsSet) != 2 {
			t.Errorf("revision %d is %+v, want %+v and two tags", d.Revision, d, want)
		}
	}
	if state := f.state(); len(state.Policies) != len(made) || state.Revision != before+api.Revision(len(made)) {
		t.Errorf("%d policies at revision %d, want %d at %d", len(state.Policies), state.Revision, len(made), before+api.Revision(len(made)))
	}
}

// givenUpWrites has half of the writers give up at any moment.
func givenUpWrites(t *testing.T, open Open) {
	f := start(t, open)
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for n := range 10 {
				ctx, cancel := context.WithCancel(t.Context())
				if w%2 == 0 {
					go cancel()
				}
				p := policy.Policy{Source: policy.AppID(fmt.Sprintf("s-%d-%d", w, n)), Destination: "d", Protocol: policy.TCP, Ports: policy.PortRange{Start: 1, End: 1}}
				if _, err := f.AddPolicies(ctx, []policy.Policy{p}); err != nil && w%2 == 1 {
					t.Errorf("a write that was not given up: %v", err)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	f.add(policy.Policy{Source: "last", Destination: "d", Protocol: policy.TCP, Ports: policy.PortRange{Start: 1, End: 1}})
	there := map[policy.AppID]bool{}
	for _, p := range f.state().Policies {
		there[p.Source] = true
	}
	for w := 1; w < 16; w += 2 {
		for n := range 10 {
			if app := policy.AppID(fmt.Sprintf("s-%d-%d", w, n)); !there[app] {
				t.Errorf("the policy of %s was answered and is lost", app)
			}
		}
	}
}
