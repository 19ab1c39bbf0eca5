package dns

import (
	"net/netip"
	"slices"
	"strings"
	"sync"

	"tulle/policy"
)

// Names is what is known of internal names: domains, routes, and the live
// instances they stand for. The daemon keeps it as the control plane and its own
// containers have it; resolvers read it. All methods may be called from any
// goroutine.
type Names struct {
	self netip.Prefix // this cell's lease: what lives there is known from attaches alone

	mu sync.RWMutex // guards what follows
	nameSet
	locals instances
	lost   []netip.Prefix // leases of cells that are not heard of
	allow  map[appPair]int
}

// nameSet is what a snapshot of the control plane replaces as a whole.
type nameSet struct {
	domains   []policy.Hostname // longest first
	routes    map[policy.Hostname][]policy.Route
	above     map[policy.Hostname]int // names with a route below each name
	names     map[policy.AppID][]policy.Hostname
	addressed map[netip.Addr][]policy.Hostname
	remotes   instances
}

// Instance is a container that a name may stand for.
type Instance struct {
	App     policy.AppID
	Address netip.Addr
	Index   string  // its number among the app's instances; "" where nobody said one
	Called  *Called // nil: not known here
}

// Called is what people call an app.
type Called struct{ Name, Space, Org string }

// instances are found by address and by app.
type instances struct {
	at map[netip.Addr]Instance
	of map[policy.AppID][]netip.Addr
}

type appPair struct{ source, destination policy.AppID }

// Change is what happened to names. What is removed comes before what is set.
type Change struct {
	DomainsRemoved, DomainsSet []policy.Hostname
	RoutesRemoved, RoutesSet   []policy.Route
	InstancesRemoved           []netip.Addr
	InstancesSet               []Instance
}

// NewNames knows nothing yet. self is this cell's lease.
func NewNames(self netip.Prefix) *Names {
	return &Names{self: self, nameSet: newNameSet(), locals: newInstances(), allow: map[appPair]int{}}
}

func newNameSet() nameSet {
	return nameSet{
		routes: map[policy.Hostname][]policy.Route{}, above: map[policy.Hostname]int{},
		names: map[policy.AppID][]policy.Hostname{}, addressed: map[netip.Addr][]policy.Hostname{},
		remotes: newInstances(),
	}
}

func newInstances() instances {
	return instances{map[netip.Addr]Instance{}, map[policy.AppID][]netip.Addr{}}
}

// Apply takes a change in. Setting what is there and removing what is not is no
// change.
func (n *Names) Apply(c Change) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.apply(c)
}

// Replace makes a snapshot what is known; only what is set in it counts. Local
// instances and policies stay.
func (n *Names) Replace(c Change) {
	set := newNameSet()
	set.apply(Change{DomainsSet: c.DomainsSet, RoutesSet: c.RoutesSet, InstancesSet: c.InstancesSet})
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nameSet = set
}

func (s *nameSet) apply(c Change) {
	for _, d := range c.DomainsRemoved {
		s.domains = slices.DeleteFunc(s.domains, func(e policy.Hostname) bool { return e == d })
	}
	for _, d := range c.DomainsSet {
		if !slices.Contains(s.domains, d) {
			s.domains = append(s.domains, d)
		}
	}
	slices.SortFunc(s.domains, func(a, b policy.Hostname) int { return len(b) - len(a) })
	for _, r := range c.RoutesRemoved {
		s.unmap(r)
	}
	for _, a := range c.InstancesRemoved {
		s.remotes.remove(a)
	}
	for _, r := range c.RoutesSet {
		s.mapRoute(r)
	}
	for _, i := range c.InstancesSet {
		s.remotes.put(i)
	}
}

func (s *nameSet) mapRoute(r policy.Route) {
	of := s.routes[r.Name]
	if slices.Contains(of, r) {
		return
	}
	s.routes[r.Name] = append(of, r)
	if len(of) == 0 {
		s.countAbove(r.Name, 1)
	}
	if r.App != "" {
		s.names[r.App] = append(s.names[r.App], r.Name)
	} else {
		s.addressed[r.Address] = append(s.addressed[r.Address], r.Name)
	}
}

func (s *nameSet) unmap(r policy.Route) {
	if !slices.Contains(s.routes[r.Name], r) {
		return
	}
	if without(s.routes, r.Name, r); len(s.routes[r.Name]) == 0 {
		s.countAbove(r.Name, -1)
	}
	if r.App != "" {
		without(s.names, r.App, r.Name)
	} else {
		without(s.addressed, r.Address, r.Name)
	}
}

// without removes one value from the list under a key; an empty list is not kept.
func without[K, V comparable](m map[K][]V, k K, v V) {
	rest := slices.DeleteFunc(slices.Clone(m[k]), func(e V) bool { return e == v })
	if len(rest) == 0 {
		delete(m, k)
		return
	}
	m[k] = rest
}

// countAbove counts a name for every name it lies under, so that these exist too
// (RFC 8020: below a name that does not exist there is nothing).
func (s *nameSet) countAbove(name policy.Hostname, by int) {
	for _, up := name.Split(); up != ""; _, up = up.Split() {
		if s.above[up] += by; s.above[up] == 0 {
			delete(s.above, up)
		}
	}
}

func (x *instances) put(i Instance) {
	if old, there := x.at[i.Address]; there {
		if old == i {
			return
		}
		x.remove(i.Address)
	}
	x.at[i.Address] = i
	x.of[i.App] = append(x.of[i.App], i.Address)
}

func (x *instances) remove(a netip.Addr) {
	if old, there := x.at[a]; there {
		delete(x.at, a)
		without(x.of, old.App, a)
	}
}

// SetLocal enters a container of this cell, RemoveLocal takes it out: at once,
// whatever the control plane knows.
func (n *Names) SetLocal(i Instance) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.locals.put(i)
}

// RemoveLocal takes a container of this cell out.
func (n *Names) RemoveLocal(a netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.locals.remove(a)
}

// SetLost names the leases whose containers are not to be found now.
func (n *Names) SetLost(leases []netip.Prefix) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lost = leases
}

// Allow counts a policy from source to destination (1), or its end (-1).
func (n *Names) Allow(source, destination policy.AppID, by int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	pair := appPair{source, destination}
	if n.allow[pair] += by; n.allow[pair] == 0 {
		delete(n.allow, pair)
	}
}

// Count is the number of names and of the instances of other cells.
func (n *Names) Count() (names, remotes int) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return len(n.routes), len(n.remotes.at)
}

// domain is the internal domain that a name lies in; "" where none.
func (n *Names) domain(name policy.Hostname) policy.Hostname {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for _, d := range n.domains {
		if name.In(d) {
			return d
		}
	}
	return ""
}

// lookup is what a name stands for. exists is true of names that have no live
// instance now, and of those above other names.
func (n *Names) lookup(name policy.Hostname) (found []Instance, exists bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if routes := n.routes[name]; len(routes) > 0 {
		return n.resolveLocked(nil, routes, ""), true
	}
	if label, of := name.Split(); isInstanceLabel(label) {
		if found = n.resolveLocked(nil, n.routes[of], label); len(found) > 0 {
			return found, true
		}
	}
	return nil, n.above[name] > 0 || slices.Contains(n.domains, name)
}

// resolveLocked appends the live instances of the routes; those alone that the
// label is of, if there is one.
func (n *Names) resolveLocked(to []Instance, routes []policy.Route, label string) []Instance {
	take := func(i Instance) {
		if (label == "" || instanceIs(i, label)) && n.aliveLocked(i.Address) {
			to = append(to, i)
		}
	}
	for _, r := range routes {
		if r.App == "" {
			i := n.atLocked(r.Address)
			i.Address = r.Address
			take(i)
			continue
		}
		for _, a := range n.remotes.of[r.App] {
			take(n.remotes.at[a])
		}
		for _, a := range n.locals.of[r.App] {
			take(n.locals.at[a])
		}
	}
	if len(routes) > 1 { // an address may be registered beside its app's route
		slices.SortFunc(to, func(a, b Instance) int { return a.Address.Compare(b.Address) })
		to = slices.CompactFunc(to, func(a, b Instance) bool { return a.Address == b.Address })
	}
	return to
}

// aliveLocked: an address of this cell's has to be a container's, and no other
// may be in the lease of a lost cell.
func (n *Names) aliveLocked(a netip.Addr) bool {
	if n.self.Contains(a) {
		_, there := n.locals.at[a]
		return there
	}
	for _, lease := range n.lost {
		if lease.Contains(a) {
			return false
		}
	}
	return true
}

// atLocked is the container at an address, as far as it is known.
func (n *Names) atLocked(a netip.Addr) Instance {
	if i, there := n.locals.at[a]; there {
		return i
	}
	return n.remotes.at[a]
}

// pointers are the names of the live container at an address.
func (n *Names) pointers(a netip.Addr) []policy.Hostname {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if !n.aliveLocked(a) {
		return nil
	}
	names := slices.Clone(n.addressed[a])
	if i := n.atLocked(a); i.App != "" {
		for _, name := range n.names[i.App] {
			names = append(names, policy.Hostname(instanceLabel(i))+"."+name)
		}
	}
	return names
}

// prohibited says whether the container at from may open no connection to any of
// the instances, and between which apps a policy would mend that.
func (n *Names) prohibited(from netip.Addr, to []Instance) (source, destination Instance, yes bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	source = n.locals.at[from]
	if source.App == "" {
		return source, destination, false
	}
	for _, i := range to {
		if i.App == "" || n.allow[appPair{source.App, i.App}] > 0 {
			return source, destination, false // whose it is nobody knows, or it is allowed
		}
		if destination.App == "" || destination.Called == nil {
			destination = i
		}
	}
	return source, destination, destination.App != ""
}

// Instances have names of their own below their apps': "0.web.apps.internal"
// where they have a number, else one with their address, as
// "ip-10-255-3-4.web.apps.internal".

const addressLabel = "ip-"

func instanceLabel(i Instance) string {
	if isNumber(i.Index) {
		return i.Index
	}
	return addressLabel + strings.NewReplacer(".", "-", ":", "-").Replace(i.Address.String())
}

func isInstanceLabel(label string) bool {
	return isNumber(label) || strings.HasPrefix(label, addressLabel)
}

func instanceIs(i Instance, label string) bool {
	if isNumber(label) {
		return i.Index == label
	}
	i.Index = ""
	return instanceLabel(i) == label
}

func isNumber(s string) bool {
	if s == "" || len(s) > 10 {
		return false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}
