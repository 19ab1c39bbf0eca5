package server

import (
	"context"
	"slices"
	"sync"
	"time"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

// memory is what a server remembers of the store besides what its hub has: small
// lists, read again some moments after a change. Policies, tags and endpoints
// are the hub's.
type memory struct {
	rest time.Duration // between two readings, at least

	mu    sync.Mutex // guards what follows
	known *known     // nil: nothing was read yet

	updated  time.Time    // of the policies
	updateAt api.Revision // the hub had come to when that was read
}

// known is one reading. It never changes.
type known struct {
	apps          []store.App
	cells         []store.Cell
	silk          []store.SilkLease
	routes        []policy.Route
	domains       []policy.Hostname
	stats         store.Stats
	groups        []policy.SecurityGroup
	groupsUpdated time.Time
}

// recall takes something out of what is known. Whoever gets a list must not
// change it.
func recall[T any](m *memory, what func(*known) T) (T, bool) {
	m.mu.Lock()
	k := m.known
	m.mu.Unlock()
	if k == nil {
		var none T
		return none, false
	}
	return what(k), true
}

// follow reads what changes, until ctx ends: soon after a change, but at most
// every rest and for at most a fiftieth of the time.
func (m *memory) follow(ctx context.Context, s *steadyStore) {
	idle := time.NewTimer(refreshIdle)
	defer idle.Stop()
	for {
		changed := s.Changed()
		start := time.Now()
		rest := m.rest
		if inner, leave, ok := s.enter(ctx); ok {
			if err := m.refresh(inner, s); err != nil && ctx.Err() == nil {
				s.look()
			}
			leave()
			rest = max(rest, 50*time.Since(start))
		}
		idle.Reset(rest)
		select {
		case <-ctx.Done():
			return
		case <-idle.C:
		}
		idle.Reset(refreshIdle)
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-idle.C:
		}
	}
}

// refresh reads the lists. Groups are read only when one has changed.
func (m *memory) refresh(ctx context.Context, s *steadyStore) (err error) {
	revision := s.hub.Revision()
	var k known
	if k.apps, err = s.Store.Apps(ctx); err != nil {
		return err
	}
	if k.cells, err = s.Store.Cells(ctx); err != nil {
		return err
	}
	if k.silk, err = s.Store.SilkLeases(ctx); err != nil {
		return err
	}
	if k.routes, err = s.Store.Routes(ctx, store.RouteFilter{}); err != nil {
		return err
	}
	if k.domains, err = s.Store.Domains(ctx); err != nil {
		return err
	}
	if k.stats, err = s.Store.Stats(ctx); err != nil {
		return err
	}
	if k.groupsUpdated, err = s.Store.SecurityGroupsUpdated(ctx); err != nil {
		return err
	}
	old, ok := recall(m, func(k *known) *known { return k })
	if ok && old.groupsUpdated.Equal(k.groupsUpdated) {
		k.groups = old.groups
	} else if k.groups, _, err = s.Store.SecurityGroups(ctx, store.GroupFilter{All: true}); err != nil {
		return err
	}
	at, err := s.Store.LastUpdated(ctx)
	if err != nil {
		return err
	}
	m.policiesUpdated(revision, at)
	s.countTags(k.stats)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.known = &k
	return nil
}

// policiesUpdated notes the time of the last change of policies, which was read
// when the hub had come to a revision.
func (m *memory) policiesUpdated(at api.Revision, updated time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if updated.After(m.updated) {
		m.updated, m.updateAt = updated, at
	} else {
		m.updateAt = max(m.updateAt, at)
	}
}

// recallUpdated is that time for the policies that the hub has at a revision.
// Agents compare it with what they saw last: where the hub has come further than
// the time that is known, it must have grown.
func (m *memory) recallUpdated(at api.Revision) (time.Time, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if at > m.updateAt {
		m.updated, m.updateAt = m.updated.Add(time.Microsecond), at
	}
	return m.updated, m.known != nil
}

// securityGroups lists what f selects, all in one page: a page that began at the
// database's numbers cannot be continued from here.
func (m *memory) securityGroups(f store.GroupFilter) ([]policy.SecurityGroup, bool) {
	groups, ok := recall(m, func(k *known) []policy.SecurityGroup { return k.groups })
	if !ok || f.From > 0 {
		return nil, false
	}
	if f.All {
		return groups, true
	}
	spaces := make(map[string]bool, len(f.Spaces))
	for _, s := range f.Spaces {
		spaces[s] = true
	}
	in := func(guid string) bool { return spaces[guid] }
	selected := []policy.SecurityGroup{}
	for _, g := range groups {
		if g.StagingDefault || g.RunningDefault || slices.ContainsFunc(g.StagingSpaces, in) || slices.ContainsFunc(g.RunningSpaces, in) {
			selected = append(selected, g)
		}
	}
	return selected, true
}

// Tags are told to run out when so much of them is taken, and again only after
// there was some room in between.
const tagsWarn, tagsCalm = 0.80, 0.75

// countTags warns while there is time to do something about it.
func (s *steadyStore) countTags(stats store.Stats) {
	taken := float64(stats.Tags+stats.Resting) / float64(stats.TagLimit)
	s.mu.Lock()
	told := s.tagsTold
	s.tagsTold = taken >= tagsWarn || told && taken >= tagsCalm
	tell := s.tagsTold && !told
	s.mu.Unlock()
	if tell {
		s.log.Warn("tags run out: delete policies of apps that are gone, or revoke cells that are lost",
			"in_use", stats.Tags, "resting", stats.Resting, "limit", stats.TagLimit)
	}
}
