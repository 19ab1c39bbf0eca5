package hub

import (
	"net/netip"
	"slices"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

// names is the part of an Index that concerns every cell: a container may ask
// for any name, so every cell knows all of them, and whom they stand for.
type names struct {
	domains   map[policy.Hostname]struct{}
	routes    map[policy.Hostname][]policy.Route // of a name, oldest first
	named     map[policy.AppID]int               // routes of an app
	addresses map[netip.Addr]place               // whose an address is
}

func newNames(s *store.State) names {
	n := names{
		domains: make(map[policy.Hostname]struct{}), routes: make(map[policy.Hostname][]policy.Route),
		named: make(map[policy.AppID]int), addresses: make(map[netip.Addr]place, len(s.Endpoints)),
	}
	for _, d := range s.Domains {
		n.domains[d] = struct{}{}
	}
	return n
}

// applyNames takes a change's domains and routes in, after its endpoints, and
// finds out whether one of these has a name.
func (x *Index) applyNames(d api.Delta, ch *Change) {
	for _, domain := range d.DomainsSet {
		if _, there := x.domains[domain]; !there {
			x.domains[domain] = struct{}{}
			ch.domains = append(ch.domains, domain)
		}
	}
	for _, domain := range d.DomainsRemoved {
		if _, there := x.domains[domain]; there {
			delete(x.domains, domain)
			ch.domains = append(ch.domains, domain)
		}
	}
	for _, r := range d.RoutesSet {
		x.addRoute(r, ch)
	}
	for _, r := range d.RoutesRemoved {
		x.removeRoute(r, ch)
	}
	for _, m := range ch.moved {
		ch.called = ch.called || m.before != nil && x.named[m.before.App] > 0 || m.after != nil && x.named[m.after.App] > 0
	}
}

func (x *Index) addRoute(r policy.Route, ch *Change) {
	if slices.Contains(x.routes[r.Name], r) {
		return
	}
	x.routes[r.Name] = append(x.routes[r.Name], r)
	ch.routes = append(ch.routes, r)
	if r.App == "" {
		return
	}
	if x.named[r.App]++; x.named[r.App] == 1 {
		ch.routed = append(ch.routed, r.App)
	}
}

func (x *Index) removeRoute(r policy.Route, ch *Change) {
	of := x.routes[r.Name]
	i := slices.Index(of, r)
	if i < 0 {
		return
	}
	// A new list: a Lookup may have given the old one away.
	if x.routes[r.Name] = slices.Concat(of[:i], of[i+1:]); len(of) == 1 {
		delete(x.routes, r.Name)
	}
	ch.routes = append(ch.routes, r)
	if r.App == "" {
		return
	}
	if x.named[r.App]--; x.named[r.App] == 0 {
		delete(x.named, r.App)
		ch.routed = append(ch.routed, r.App)
	}
}

// takeAddress notes that the address is the place's; leaveAddress that it is not
// any more, unless somebody else has it already.
func (n *names) takeAddress(a netip.Addr, at place) { n.addresses[a] = at }

func (n *names) leaveAddress(a netip.Addr, at place) {
	if n.addresses[a] == at {
		delete(n.addresses, a)
	}
}

// concernsNames reports whether the change concerns every cell by a name.
func (ch *Change) concernsNames() bool {
	return len(ch.domains)+len(ch.routes) > 0 || ch.called
}

// nameSnapshot fills in what is known of names.
func (x *Index) nameSnapshot(cell string, s *api.Snapshot) {
	s.Domains, s.Routes, s.Instances = []policy.Hostname{}, []policy.Route{}, []api.Instance{}
	for d := range x.domains {
		s.Domains = append(s.Domains, d)
	}
	for _, of := range x.routes {
		s.Routes = append(s.Routes, of...)
	}
	for app := range x.named {
		for at := range x.instances[app] {
			if at.cell != cell {
				s.Instances = append(s.Instances, instanceOf(x.places[at]))
			}
		}
	}
}

func instanceOf(e api.Endpoint) api.Instance {
	return api.Instance{App: e.App, Cell: e.Cell, Address: e.Address, Index: e.Instance}
}

// names puts into the delta what the changes did to names, as it is now.
func (b *deltaBuilder) names(changes []*Change, d *api.Delta) {
	domains := make(map[policy.Hostname]struct{})
	routes := make(map[policy.Route]struct{})
	apps := make(map[policy.AppID]struct{}) // that got a name, or lost all
	touched := make(map[netip.Addr]struct{})
	for _, ch := range changes {
		for _, domain := range ch.domains {
			domains[domain] = struct{}{}
		}
		for _, r := range ch.routes {
			routes[r] = struct{}{}
		}
		for _, app := range ch.routed {
			apps[app] = struct{}{}
		}
	}
	called := func(app policy.AppID) bool {
		_, flipped := apps[app]
		return flipped || b.x.named[app] > 0
	}
	for app := range apps {
		for at := range b.x.instances[app] {
			touched[b.x.places[at].Address] = struct{}{}
		}
	}
	for _, ch := range changes {
		for _, m := range ch.moved {
			for _, e := range []*api.Endpoint{m.before, m.after} {
				if e != nil && called(e.App) {
					touched[e.Address] = struct{}{}
				}
			}
		}
	}
	for domain := range domains {
		if _, there := b.x.domains[domain]; there {
			d.DomainsSet = append(d.DomainsSet, domain)
		} else {
			d.DomainsRemoved = append(d.DomainsRemoved, domain)
		}
	}
	for r := range routes {
		if slices.Contains(b.x.routes[r.Name], r) {
			d.RoutesSet = append(d.RoutesSet, r)
		} else {
			d.RoutesRemoved = append(d.RoutesRemoved, r)
		}
	}
	for a := range touched {
		at, there := b.x.addresses[a]
		if e := b.x.places[at]; there && at.cell != b.cell && b.x.named[e.App] > 0 {
			d.InstancesSet = append(d.InstancesSet, instanceOf(e))
		} else {
			d.InstancesRemoved = append(d.InstancesRemoved, a)
		}
	}
}
