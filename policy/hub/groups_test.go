package hub

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

// groupStore is a source of security groups that a test changes.
type groupStore struct {
	mu   sync.Mutex
	all  []policy.SecurityGroup
	at   time.Time
	fail bool
}

func (s *groupStore) set(gs ...policy.SecurityGroup) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all, s.at = gs, s.at.Add(time.Second)
}

func (s *groupStore) broken(b bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = b
}

func (s *groupStore) SecurityGroups(context.Context, store.GroupFilter) ([]policy.SecurityGroup, int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail {
		return nil, 0, errors.New("broken")
	}
	return slices.Clone(s.all), 0, nil
}

func (s *groupStore) SecurityGroupsUpdated(context.Context) (time.Time, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail {
		return time.Time{}, errors.New("broken")
	}
	return s.at, nil
}

// nextGroups is the watch's next word on groups; others are passed over.
func nextGroups(t *testing.T, w *Watcher) *api.GroupChange {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		e, err := w.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if e.Groups != nil {
			return e.Groups
		}
	}
}

func namesOf(c *api.GroupChange) (set []string) {
	for _, g := range c.Set {
		set = append(set, g.GUID)
	}
	slices.Sort(set)
	return set
}

func TestGroupsAreWatched(t *testing.T) {
	groups := &groupStore{}
	a := policy.SecurityGroup{GUID: "a", RunningDefault: true}
	b := policy.SecurityGroup{GUID: "b", RunningSpaces: []string{"s1"}}
	other := policy.SecurityGroup{GUID: "other", RunningSpaces: []string{"s2"}}
	groups.set(a, b, other)
	h := run(t, newMemory(), Options{Groups: groups, GroupsEvery: time.Millisecond}).h
	w := h.Watch("cell", "", 0)
	defer w.Close()
	w.Groups(func(g *policy.SecurityGroup) bool { return g.HoldsFor(policy.WorkloadApp, "s1") })

	first := nextGroups(t, w)
	if !first.Whole || !slices.Equal(namesOf(first), []string{"a", "b"}) || len(first.Removed) != 0 {
		t.Errorf("first %+v, want all that concern the cell", first)
	}
	// One changes, one goes, and one that concerns others changes.
	a.Rules = []policy.SecurityRule{{Protocol: "tcp", Destination: "10.0.0.1", Ports: "80"}}
	other.Name = "changed"
	groups.set(a, other)
	change := nextGroups(t, w)
	if change.Whole || !slices.Equal(namesOf(change), []string{"a"}) || !slices.Equal(change.Removed, []string{"b"}) {
		t.Errorf("change %+v, want a set and b removed", change)
	}
	if len(change.Set[0].Rules) != 1 {
		t.Errorf("the group came without its rules: %+v", change.Set[0])
	}
	// What cannot be read changes nothing; what was missed meanwhile comes.
	groups.broken(true)
	groups.set(other)
	groups.broken(false)
	if change = nextGroups(t, w); !slices.Equal(change.Removed, []string{"a"}) {
		t.Errorf("change %+v, want a removed", change)
	}
	// Another watch begins with all.
	again := h.Watch("cell", "", 0)
	defer again.Close()
	again.Groups(func(*policy.SecurityGroup) bool { return true })
	if first := nextGroups(t, again); !first.Whole || !slices.Equal(namesOf(first), []string{"other"}) {
		t.Errorf("first of another watch %+v", first)
	}
}
