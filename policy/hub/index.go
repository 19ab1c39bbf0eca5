package hub

import (
	"fmt"
	"time"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

// Index is the whole state at one revision, indexed by what a change has to
// find. It is not safe for concurrent use.
type Index struct {
	epoch     api.Epoch
	revision  api.Revision
	policies  multi[policy.AppID, policy.Policy]    // by each of their ends
	partners  map[policy.AppID]counts[policy.AppID] // number of policies between two apps, symmetric
	tags      map[policy.AppID]policy.Tag
	types     map[policy.AppID]string // of those of them that are no application's
	places    map[place]api.Endpoint
	instances multi[policy.AppID, place]      // places of an app
	hosts     map[policy.AppID]counts[string] // instances of an app by cell
	own       map[string]counts[policy.AppID] // instances of a cell by app
	peers     map[string]api.Peer
	revoked   map[string]time.Time // credentials of the cell issued until then are void
	total     int                  // policies
	secrets   secrets
	names
}

// place is where an endpoint lives. One container has one endpoint at a time;
// its next incarnation takes its place.
type place struct{ cell, container string }

func placeOf(e api.Endpoint) place { return place{e.Cell, e.Container} }

func keyOf(e api.Endpoint) api.EndpointKey {
	return api.EndpointKey{
		Cell: e.Cell, Container: e.Container, Address: e.Address,
		Generation: e.Generation, Incarnation: e.Incarnation,
	}
}

// multi is a map to sets; an empty set is not kept.
type multi[K, V comparable] map[K]map[V]struct{}

func (m multi[K, V]) add(k K, v V) (new bool) {
	if _, there := m[k][v]; there {
		return false
	}
	if m[k] == nil {
		m[k] = make(map[V]struct{})
	}
	m[k][v] = struct{}{}
	return true
}

func (m multi[K, V]) remove(k K, v V) {
	delete(m[k], v)
	if len(m[k]) == 0 {
		delete(m, k)
	}
}

func (m multi[K, V]) has(k K, v V) bool { _, ok := m[k][v]; return ok }

// counts is a multiset.
type counts[K comparable] map[K]int

// bump adds by (1 or -1) to the count of k2 under k and reports whether k2 came
// (0 to 1) or went (1 to 0).
func bump[K, K2 comparable](m map[K]counts[K2], k K, k2 K2, by int) (flipped bool) {
	c := m[k]
	if c == nil {
		c = make(counts[K2])
		m[k] = c
	}
	before := c[k2]
	c[k2] = before + by
	if c[k2] == 0 {
		delete(c, k2)
	}
	if len(c) == 0 {
		delete(m, k)
	}
	return (before == 0) != (before+by == 0)
}

// NewIndex indexes s.
func NewIndex(s *store.State) *Index {
	x := &Index{
		epoch:     s.Epoch,
		revision:  s.Revision,
		policies:  make(multi[policy.AppID, policy.Policy]),
		partners:  make(map[policy.AppID]counts[policy.AppID]),
		tags:      make(map[policy.AppID]policy.Tag, len(s.Tags)),
		types:     make(map[policy.AppID]string),
		places:    make(map[place]api.Endpoint, len(s.Endpoints)),
		instances: make(multi[policy.AppID, place]),
		hosts:     make(map[policy.AppID]counts[string]),
		own:       make(map[string]counts[policy.AppID]),
		peers:     make(map[string]api.Peer, len(s.Peers)),
		revoked:   make(map[string]time.Time, len(s.Revoked)),
		names:     newNames(s),
		secrets:   make(secrets),
	}
	var scrap Change
	for _, p := range s.Policies {
		x.addPolicy(p, &scrap)
	}
	for _, t := range s.Tags {
		x.setTag(t)
	}
	for _, e := range s.Endpoints {
		x.setEndpoint(e, &scrap)
	}
	for _, p := range s.Peers {
		x.peers[p.Name] = p
	}
	for _, r := range s.Routes {
		x.addRoute(r, &scrap)
	}
	for _, r := range s.Revoked {
		x.revoked[r.Cell] = r.At
	}
	for _, p := range s.Secrets {
		x.secrets.put(p)
	}
	return x
}

// Change is one revision as the index took it in: what moved, and which
// relations came or went by it. It never changes once made and is shared by all
// watchers that it concerns.
type Change struct {
	revision api.Revision
	policies []policy.Policy   // added or removed
	pairs    [][2]policy.AppID // became partners, or are no more
	tags     []policy.AppID    // got, lost or changed their tag
	moved    []move            // endpoints
	hosting  []host            // a cell began or ceased to host an app
	peers    []string          // came, changed or went
	domains  []policy.Hostname // came or went
	routes   []policy.Route    // came or went
	routed   []policy.AppID    // got their first route, or lost their last
	secrets  []pair            // came or changed
	called   bool              // an instance came or went that has a name
}

// Relates reports whether the change made or ended a relation between apps,
// between a cell and an app, or between an app and names. What such a change brings out of a cell's sight is
// found by looking at the present; so a cell that is still owed it must also be
// given every change that follows.
func (ch *Change) Relates() bool { return len(ch.pairs)+len(ch.hosting)+len(ch.routed) > 0 }

// move is what happened at a place; nil is "nothing there".
type move struct {
	place
	before, after *api.Endpoint
}

type host struct {
	cell string
	app  policy.AppID
}

// Apply takes one of the store's changes in. Removals of what is not there and
// additions of what is there are no changes. The error names a malformed item;
// the index must then be built anew.
func (x *Index) Apply(d api.Delta) (*Change, error) {
	if d.Revision <= x.revision {
		return nil, fmt.Errorf("change of revision %d after %d", d.Revision, x.revision)
	}
	ch := &Change{revision: d.Revision}
	x.revision = d.Revision

	// What is set comes before what is removed, so that an app whose only
	// instance on a cell is replaced never ceases to be hosted there in between.
	for _, p := range d.PoliciesAdded {
		q, err := p.Domain()
		if err != nil {
			return nil, fmt.Errorf("revision %d: %w", d.Revision, err)
		}
		x.addPolicy(q, ch)
	}
	for _, p := range d.PoliciesRemoved {
		q, err := p.Domain()
		if err != nil {
			return nil, fmt.Errorf("revision %d: %w", d.Revision, err)
		}
		x.removePolicy(q, ch)
	}
	for _, t := range d.TagsSet {
		if old, ok := x.tags[t.App]; !ok || old != t.Tag {
			x.setTag(t)
			ch.tags = append(ch.tags, t.App)
		}
	}
	for _, app := range d.TagsRemoved {
		if _, ok := x.tags[app]; ok {
			delete(x.tags, app)
			delete(x.types, app)
			ch.tags = append(ch.tags, app)
		}
	}
	for _, e := range d.EndpointsSet {
		x.setEndpoint(e, ch)
	}
	for _, k := range d.EndpointsRemoved {
		x.removeEndpoint(k, ch)
	}
	for _, p := range d.PeersSet {
		if old, ok := x.peers[p.Name]; !ok || old != p {
			x.peers[p.Name] = p
			ch.peers = append(ch.peers, p.Name)
			if p.EncapsulationKey == "" {
				x.secrets.drop(p.Name)
			}
		}
	}
	for _, name := range d.PeersRemoved {
		if _, ok := x.peers[name]; ok {
			delete(x.peers, name)
			x.secrets.drop(name)
			ch.peers = append(ch.peers, name)
		}
	}
	for _, p := range d.SecretsSet {
		x.secrets.put(p)
		ch.secrets = append(ch.secrets, pair{p.From, p.To})
	}
	x.applyNames(d, ch)
	for _, r := range d.Revoked {
		x.revoked[r.Cell] = r.At
	}
	return ch, nil
}

func (x *Index) setTag(t api.AppTag) {
	x.tags[t.App] = t.Tag
	if t.Type != "" {
		x.types[t.App] = t.Type
	}
}

func (x *Index) addPolicy(p policy.Policy, ch *Change) {
	if !x.policies.add(p.Source, p) {
		return
	}
	x.policies.add(p.Destination, p)
	x.total++
	ch.policies = append(ch.policies, p)
	x.relate(p, 1, ch)
}

func (x *Index) removePolicy(p policy.Policy, ch *Change) {
	if !x.policies.has(p.Source, p) {
		return
	}
	x.policies.remove(p.Source, p)
	x.policies.remove(p.Destination, p)
	x.total--
	ch.policies = append(ch.policies, p)
	x.relate(p, -1, ch)
}

func (x *Index) relate(p policy.Policy, by int, ch *Change) {
	flipped := bump(x.partners, p.Source, p.Destination, by)
	if p.Source != p.Destination {
		bump(x.partners, p.Destination, p.Source, by)
	}
	if flipped {
		ch.pairs = append(ch.pairs, [2]policy.AppID{p.Source, p.Destination})
	}
}

func (x *Index) setEndpoint(e api.Endpoint, ch *Change) {
	at := placeOf(e)
	old, there := x.places[at]
	if there && old == e {
		return
	}
	x.places[at] = e
	if there {
		x.leaveAddress(old.Address, at)
	}
	x.takeAddress(e.Address, at)
	m := move{place: at, after: &e}
	if there {
		m.before = &old
	}
	ch.moved = append(ch.moved, m)
	if there && old.App == e.App {
		return
	}
	x.instances.add(e.App, at)
	x.host(at.cell, e.App, 1, ch)
	if there {
		x.instances.remove(old.App, at)
		x.host(at.cell, old.App, -1, ch)
	}
}

// removeEndpoint takes the endpoint away if it is still the one that k names;
// its place may have a new incarnation already.
func (x *Index) removeEndpoint(k api.EndpointKey, ch *Change) {
	at := place{k.Cell, k.Container}
	old, there := x.places[at]
	if !there || keyOf(old) != k {
		return
	}
	delete(x.places, at)
	x.leaveAddress(old.Address, at)
	x.instances.remove(old.App, at)
	x.host(at.cell, old.App, -1, ch)
	ch.moved = append(ch.moved, move{place: at, before: &old})
}

func (x *Index) host(cell string, app policy.AppID, by int, ch *Change) {
	bump(x.own, cell, app, by)
	if bump(x.hosts, app, cell, by) {
		ch.hosting = append(ch.hosting, host{cell, app})
	}
}

// Epoch is the life of the store that the index shows.
func (x *Index) Epoch() api.Epoch { return x.epoch }

// Revision is the last change that the index took in.
func (x *Index) Revision() api.Revision { return x.revision }

// partnered reports whether one of the cell's apps has a policy with app.
func (x *Index) partnered(app policy.AppID, cell string) bool {
	partners, own := x.partners[app], x.own[cell]
	if len(own) < len(partners) {
		for a := range own {
			if partners[a] > 0 {
				return true
			}
		}
		return false
	}
	for a := range partners {
		if own[a] > 0 {
			return true
		}
	}
	return false
}

// related are the cells that host a partner of an app on any of the cells given:
// those who must know of these cells' endpoints.
func (x *Index) related(of map[string]struct{}) map[string]struct{} {
	// Each app is looked at once, however many of the cells have it.
	apps, partners := make(map[policy.AppID]struct{}), make(map[policy.AppID]struct{})
	for name := range of {
		for app := range x.own[name] {
			apps[app] = struct{}{}
		}
	}
	for app := range apps {
		for partner := range x.partners[app] {
			partners[partner] = struct{}{}
		}
	}
	cells := make(map[string]struct{})
	for partner := range partners {
		for name := range x.hosts[partner] {
			cells[name] = struct{}{}
		}
	}
	return cells
}
