package hub_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/hub"
	"tulle/policy/store"
)

// TestReadsAreThoseOfTheStore asks the hub, and a slow twin, for policies by
// filters of every kind.
func TestReadsAreThoseOfTheStore(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	app := func() policy.AppID { return policy.AppID(fmt.Sprint("app-", random.IntN(12))) }
	seen := map[policy.Policy]bool{}
	state := &store.State{}
	for range 200 {
		port := uint16(1 + random.IntN(3))
		p := policy.Policy{Source: app(), Destination: app(), Protocol: policy.TCP, Ports: policy.PortRange{Start: port, End: port}}
		if !seen[p] {
			seen[p] = true
			state.Policies = append(state.Policies, p)
		}
	}
	h, err := hub.New(t.Context(), &fixed{state}, hub.Options{})
	if err != nil {
		t.Fatal(err)
	}
	list := func() []policy.AppID {
		switch random.IntN(4) {
		case 0:
			return nil
		case 1:
			return []policy.AppID{}
		}
		ids := []policy.AppID{"unknown"}
		for range random.IntN(5) {
			ids = append(ids, app())
		}
		return ids
	}
	for range 500 {
		f := store.Filter{IDs: list(), Sources: list(), Destinations: list()}
		want := []policy.Policy{}
		for _, p := range state.Policies {
			if selects(f, p) {
				want = append(want, p)
			}
		}
		slices.SortFunc(want, func(a, b policy.Policy) int { return strings.Compare(a.String(), b.String()) })
		got := h.Policies(f)
		slices.SortFunc(got, func(a, b policy.Policy) int { return strings.Compare(a.String(), b.String()) })
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("%+v (-want +got):\n%s", f, diff)
		}
	}
	if got := h.Policies(store.Filter{}); !slices.IsSortedFunc(got, func(a, b policy.Policy) int { return strings.Compare(string(a.Source), string(b.Source)) }) {
		t.Error("not in the store's order")
	}
}

// fixed is a source that never changes.
type fixed struct{ state *store.State }

func (f *fixed) State(context.Context) (*store.State, error)                     { return f.state, nil }
func (f *fixed) Changes(context.Context, api.Revision, int) ([]api.Delta, error) { return nil, nil }
func (f *fixed) Changed() <-chan struct{}                                        { return nil }

// selects is store.Filter's promise, word by word.
func selects(f store.Filter, p policy.Policy) bool {
	if f.IDs != nil {
		return slices.Contains(f.IDs, p.Source) || slices.Contains(f.IDs, p.Destination)
	}
	return (f.Sources == nil || slices.Contains(f.Sources, p.Source)) &&
		(f.Destinations == nil || slices.Contains(f.Destinations, p.Destination))
}
