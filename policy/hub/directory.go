package hub

import (
	"cmp"
	"net/netip"
	"slices"

	"tulle/policy"
	"tulle/policy/api"
)

// Addresses are those that a name stands for now, each once, in the order of its routes:
// of an app the instances of cells that are not lost, by cell and container. Names of
// instances ("0.web.apps.internal") are names as well.
func (h *Hub) Addresses(name policy.Hostname) []netip.Addr {
	h.mu.Lock()
	defer h.mu.Unlock()
	if of := h.x.routes[name]; len(of) > 0 {
		return h.addressesLocked(of, "")
	}
	if index, of, ok := name.Instance(); ok {
		return h.addressesLocked(h.x.routes[of], index)
	}
	return nil
}

func (h *Hub) addressesLocked(routes []policy.Route, index string) (all []netip.Addr) {
	for _, r := range routes {
		if r.App == "" {
			if index == "" {
				all = append(all, r.Address)
			}
			continue
		}
		var found []api.Endpoint
		for at := range h.x.instances[r.App] {
			e := h.x.places[at]
			if _, lost := slices.BinarySearch(h.lost, at.cell); !lost && (index == "" || e.Instance == index) {
				found = append(found, e)
			}
		}
		slices.SortFunc(found, func(a, b api.Endpoint) int {
			return cmp.Or(cmp.Compare(a.Cell, b.Cell), cmp.Compare(a.Container, b.Container))
		})
		for _, e := range found {
			all = append(all, e.Address)
		}
	}
	if len(routes) < 2 {
		return all
	}
	// An address may be registered beside its app's route.
	there := make(map[netip.Addr]bool, len(all))
	return slices.DeleteFunc(all, func(a netip.Addr) bool {
		before := there[a]
		there[a] = true
		return before
	})
}

// Names are those that have a route.
func (h *Hub) Names() []policy.Hostname {
	h.mu.Lock()
	defer h.mu.Unlock()
	names := make([]policy.Hostname, 0, len(h.x.routes))
	for name := range h.x.routes {
		names = append(names, name)
	}
	return names
}
