package hub

import (
	"cmp"
	"slices"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

// What the hub has in memory anyway answers reads while the store cannot. All
// of it is as of Revision, which may be behind the store's.

// Policies lists what f selects, in the store's order.
func (h *Hub) Policies(f store.Filter) []policy.Policy {
	ps := h.policies(f)
	slices.SortFunc(ps, func(a, b policy.Policy) int {
		return cmp.Or(cmp.Compare(a.Source, b.Source), cmp.Compare(a.Destination, b.Destination),
			cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Ports.Start, b.Ports.Start), cmp.Compare(a.Ports.End, b.Ports.End))
	})
	return ps
}

func (h *Hub) policies(f store.Filter) []policy.Policy {
	h.mu.Lock()
	defer h.mu.Unlock()
	ps := []policy.Policy{}
	// Each policy stands under both of its ends; of those that are found by both,
	// the one under its source counts.
	take := func(app policy.AppID, want func(policy.Policy) bool) {
		for p := range h.x.policies[app] {
			if want(p) {
				ps = append(ps, p)
			}
		}
	}
	switch {
	case f.IDs != nil:
		ids := setOf(f.IDs)
		for app := range ids {
			take(app, func(p policy.Policy) bool { return p.Source == app || !ids[p.Source] })
		}
	case f.Sources != nil:
		destinations := setOf(f.Destinations)
		for app := range setOf(f.Sources) {
			take(app, func(p policy.Policy) bool {
				return p.Source == app && (f.Destinations == nil || destinations[p.Destination])
			})
		}
	case f.Destinations != nil:
		for app := range setOf(f.Destinations) {
			take(app, func(p policy.Policy) bool { return p.Destination == app })
		}
	default:
		ps = make([]policy.Policy, 0, h.x.total)
		for app := range h.x.policies {
			take(app, func(p policy.Policy) bool { return p.Source == app })
		}
	}
	return ps
}

func setOf(apps []policy.AppID) map[policy.AppID]bool {
	set := make(map[policy.AppID]bool, len(apps))
	for _, a := range apps {
		set[a] = true
	}
	return set
}

// Tags lists the tags that are in use, by number.
func (h *Hub) Tags() []api.AppTag {
	h.mu.Lock()
	tags := make([]api.AppTag, 0, len(h.x.tags))
	for app, tag := range h.x.tags {
		tags = append(tags, api.AppTag{App: app, Tag: tag, Type: h.x.types[app]})
	}
	h.mu.Unlock()
	slices.SortFunc(tags, func(a, b api.AppTag) int { return cmp.Compare(a.Tag, b.Tag) })
	return tags
}

// Endpoints lists all, by cell and container.
func (h *Hub) Endpoints() api.Endpoints {
	h.mu.Lock()
	list := api.Endpoints{Revision: h.x.revision, Endpoints: make([]api.Endpoint, 0, len(h.x.places))}
	for _, e := range h.x.places {
		list.Endpoints = append(list.Endpoints, e)
	}
	h.mu.Unlock()
	slices.SortFunc(list.Endpoints, func(a, b api.Endpoint) int {
		return cmp.Or(cmp.Compare(a.Cell, b.Cell), cmp.Compare(a.Container, b.Container))
	})
	return list
}
