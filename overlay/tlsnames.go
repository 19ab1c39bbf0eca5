package overlay

import (
	"maps"
	"slices"

	"tulle/policy"
	"tulle/policy/api"
)

// routes are the internal names of apps, as certificates bear them.
type routes map[policy.AppID]map[string]bool

// take follows an event; it reports whether any name may have changed.
func (r *routes) take(e api.Event) bool {
	put := func(list []policy.Route, there bool) {
		for _, route := range list {
			if route.App == "" {
				continue // an address that was registered from elsewhere
			}
			if (*r)[route.App] == nil {
				(*r)[route.App] = map[string]bool{}
			}
			if there {
				(*r)[route.App][string(route.Name)] = true
			} else {
				delete((*r)[route.App], string(route.Name))
			}
		}
	}
	switch {
	case e.Snapshot != nil:
		*r = routes{}
		put(e.Snapshot.Routes, true)
		return true
	case e.Delta != nil && len(e.Delta.RoutesRemoved)+len(e.Delta.RoutesSet) > 0:
		put(e.Delta.RoutesRemoved, false)
		put(e.Delta.RoutesSet, true)
		return true
	}
	return false
}

// renamed has certificates made anew whose names are not those of the app's
// routes any more. What each certificate says decides, so that neither a restart
// nor a gap in the watch leaves one behind.
func (l *life) renamed(e api.Event) {
	t := l.terminals
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.routes.take(e) {
		return
	}
	t.named = t.named || e.Snapshot != nil
	for container, one := range t.of {
		l.mu.Lock()
		app := one.e.AppID
		if at := l.attached[container]; at != nil {
			app = at.e.AppID
		}
		l.mu.Unlock()
		t.renameLocked(container, app)
	}
}

// renameLocked has a container's certificate made anew if its names are others than
// those of the app's routes.
func (t *terminals) renameLocked(container string, app policy.AppID) {
	want := append(slices.Collect(maps.Keys(t.routes[app])), container)
	have := t.d.identity.Names(container)
	slices.Sort(want)
	slices.Sort(have)
	if !slices.Equal(want, have) {
		t.d.identity.Renew(container)
	}
}
