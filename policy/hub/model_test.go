package hub

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

var byValue = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

// view is what a cell knows, as sets: the receiving end of the watch.
type view struct {
	Policies  map[api.Policy]bool
	Tags      map[policy.AppID]policy.Tag
	Endpoints map[api.EndpointKey]api.Endpoint
	Peers     map[string]api.Peer
	Domains   map[policy.Hostname]bool
	Routes    map[policy.Route]bool
	Instances map[netip.Addr]api.Instance
}

func viewOf(s *api.Snapshot) view {
	v := view{
		Policies: map[api.Policy]bool{}, Tags: map[policy.AppID]policy.Tag{},
		Endpoints: map[api.EndpointKey]api.Endpoint{}, Peers: map[string]api.Peer{},
		Domains: map[policy.Hostname]bool{}, Routes: map[policy.Route]bool{}, Instances: map[netip.Addr]api.Instance{},
	}
	for _, d := range s.Domains {
		v.Domains[d] = true
	}
	for _, r := range s.Routes {
		v.Routes[r] = true
	}
	for _, i := range s.Instances {
		v.Instances[i.Address] = i
	}
	for _, p := range s.Policies {
		v.Policies[p] = true
	}
	for _, t := range s.Tags {
		v.Tags[t.App] = t.Tag
	}
	for _, e := range s.Endpoints {
		v.Endpoints[keyOf(e)] = e
	}
	for _, p := range s.Peers {
		v.Peers[p.Name] = p
	}
	return v
}

// differ is cmp.Diff, at a fraction of the cost where the views are equal.
func differ(want, got view) string {
	if reflect.DeepEqual(want, got) {
		return ""
	}
	return cmp.Diff(want, got, byValue)
}

func (v view) clone() view {
	c := viewOf(&api.Snapshot{})
	for k, e := range v.Policies {
		c.Policies[k] = e
	}
	for k, e := range v.Tags {
		c.Tags[k] = e
	}
	for k, e := range v.Endpoints {
		c.Endpoints[k] = e
	}
	for k, e := range v.Peers {
		c.Peers[k] = e
	}
	maps.Copy(c.Domains, v.Domains)
	maps.Copy(c.Routes, v.Routes)
	maps.Copy(c.Instances, v.Instances)
	return c
}

// apply does what api.Delta says: removals first, then additions. It reports an
// item that stands in both lists.
func (v view) apply(d *api.Delta) error {
	for _, p := range d.PoliciesRemoved {
		if slices.Contains(d.PoliciesAdded, p) {
			return fmt.Errorf("policy %v is both added and removed", p)
		}
		delete(v.Policies, p)
	}
	for _, app := range d.TagsRemoved {
		if slices.ContainsFunc(d.TagsSet, func(t api.AppTag) bool { return t.App == app }) {
			return fmt.Errorf("tag of %s is both set and removed", app)
		}
		delete(v.Tags, app)
	}
	for _, k := range d.EndpointsRemoved {
		if slices.ContainsFunc(d.EndpointsSet, func(e api.Endpoint) bool { return keyOf(e) == k }) {
			return fmt.Errorf("endpoint %v is both set and removed", k)
		}
		delete(v.Endpoints, k)
	}
	for _, name := range d.PeersRemoved {
		delete(v.Peers, name)
	}
	if err := v.applyNames(d); err != nil {
		return err
	}
	for _, p := range d.PoliciesAdded {
		v.Policies[p] = true
	}
	for _, t := range d.TagsSet {
		v.Tags[t.App] = t.Tag
	}
	for _, e := range d.EndpointsSet {
		v.Endpoints[keyOf(e)] = e
	}
	for _, p := range d.PeersSet {
		v.Peers[p.Name] = p
	}
	return nil
}

func (v view) applyNames(d *api.Delta) error {
	for _, domain := range d.DomainsRemoved {
		if slices.Contains(d.DomainsSet, domain) {
			return fmt.Errorf("domain %s is both set and removed", domain)
		}
		delete(v.Domains, domain)
	}
	for _, r := range d.RoutesRemoved {
		if slices.Contains(d.RoutesSet, r) {
			return fmt.Errorf("route %s is both set and removed", r)
		}
		delete(v.Routes, r)
	}
	for _, a := range d.InstancesRemoved {
		if slices.ContainsFunc(d.InstancesSet, func(i api.Instance) bool { return i.Address == a }) {
			return fmt.Errorf("instance at %s is both set and removed", a)
		}
		delete(v.Instances, a)
	}
	for _, domain := range d.DomainsSet {
		v.Domains[domain] = true
	}
	for _, r := range d.RoutesSet {
		v.Routes[r] = true
	}
	for _, i := range d.InstancesSet {
		v.Instances[i.Address] = i
	}
	return nil
}

// world is the obvious twin of the index: plain lists, and definitions that are
// read off them each time.
type world struct {
	rng       *rand.Rand
	revision  api.Revision
	policies  map[policy.Policy]bool
	tags      map[policy.AppID]policy.Tag
	endpoints map[place]api.Endpoint
	peers     map[string]api.Peer
	domains   map[policy.Hostname]bool
	routes    map[policy.Route]bool
	counter   uint64
}

func newWorld(rng *rand.Rand) *world {
	return &world{
		rng: rng, revision: 1,
		policies: map[policy.Policy]bool{}, tags: map[policy.AppID]policy.Tag{},
		endpoints: map[place]api.Endpoint{}, peers: map[string]api.Peer{},
		domains: map[policy.Hostname]bool{}, routes: map[policy.Route]bool{},
	}
}

func (w *world) state() *store.State {
	s := &store.State{Epoch: "e", Revision: w.revision}
	for p := range w.policies {
		s.Policies = append(s.Policies, p)
	}
	for app, tag := range w.tags {
		s.Tags = append(s.Tags, api.AppTag{App: app, Tag: tag})
	}
	for _, e := range w.endpoints {
		s.Endpoints = append(s.Endpoints, e)
	}
	for _, p := range w.peers {
		s.Peers = append(s.Peers, p)
	}
	s.Domains = slices.Collect(maps.Keys(w.domains))
	s.Routes = slices.Collect(maps.Keys(w.routes))
	return s
}

func (w *world) named(app policy.AppID) bool {
	for r := range w.routes {
		if r.App == app {
			return true
		}
	}
	return false
}

func (w *world) hosts(cell string, app policy.AppID) bool {
	for _, e := range w.endpoints {
		if e.Cell == cell && e.App == app {
			return true
		}
	}
	return false
}

// partner: does one of the cell's apps have a policy with app?
func (w *world) partner(cell string, app policy.AppID) bool {
	for p := range w.policies {
		if p.Source == app && w.hosts(cell, p.Destination) || p.Destination == app && w.hosts(cell, p.Source) {
			return true
		}
	}
	return false
}

func (w *world) view(cell string) view {
	v := viewOf(&api.Snapshot{})
	for p := range w.policies {
		if w.hosts(cell, p.Source) || w.hosts(cell, p.Destination) {
			v.Policies[api.FromDomain(p)] = true
		}
	}
	for app, tag := range w.tags {
		if w.hosts(cell, app) || w.partner(cell, app) {
			v.Tags[app] = tag
		}
	}
	for _, e := range w.endpoints {
		if e.Cell != cell && w.partner(cell, e.App) {
			v.Endpoints[keyOf(e)] = e
		}
	}
	for _, p := range w.peers {
		if p.Name != cell {
			v.Peers[p.Name] = p
		}
	}
	maps.Copy(v.Domains, w.domains)
	maps.Copy(v.Routes, w.routes)
	for _, e := range w.endpoints {
		if e.Cell != cell && w.named(e.App) {
			v.Instances[e.Address] = api.Instance{App: e.App, Cell: e.Cell, Address: e.Address, Index: e.Instance}
		}
	}
	return v
}

// related: the cells that host an app that one of cell's apps has a policy with.
func (w *world) related(cell string) map[string]struct{} {
	m := map[string]struct{}{}
	for _, e := range w.endpoints {
		if e.Cell != cell && w.partner(cell, e.App) {
			m[e.Cell] = struct{}{}
		}
	}
	return m
}

const (
	modelApps       = 7
	modelCells      = 6
	modelContainers = 4
)

func (w *world) app() policy.AppID { return policy.AppID(fmt.Sprintf("app-%d", w.rng.IntN(modelApps))) }
func (w *world) cell() string      { return fmt.Sprintf("cell-%d", w.rng.IntN(modelCells)) }

// step commits a random change of one to four items, as the store would: an
// item stands in one list, and the tags need not agree with the policies.
func (w *world) step() api.Delta {
	w.revision++
	d := api.Delta{Revision: w.revision}
	used := map[any]bool{}
	for range 1 + w.rng.IntN(4) {
		switch w.rng.IntN(12) {
		case 0, 1, 2:
			p := policy.Policy{
				Source: w.app(), Destination: w.app(), Protocol: policy.TCP,
				Ports: policy.PortRange{Start: 1, End: uint16(1 + w.rng.IntN(2))},
			}
			if used[p] {
				continue
			}
			used[p] = true
			if w.policies[p] {
				delete(w.policies, p)
				d.PoliciesRemoved = append(d.PoliciesRemoved, api.FromDomain(p))
			} else {
				w.policies[p] = true
				d.PoliciesAdded = append(d.PoliciesAdded, api.FromDomain(p))
			}
		case 3, 4:
			app := w.app()
			if used[app] {
				continue
			}
			used[app] = true
			if _, ok := w.tags[app]; ok && w.rng.IntN(2) == 0 {
				delete(w.tags, app)
				d.TagsRemoved = append(d.TagsRemoved, app)
			} else {
				w.tags[app] = policy.Tag(1 + w.rng.IntN(100))
				d.TagsSet = append(d.TagsSet, api.AppTag{App: app, Tag: w.tags[app]})
			}
		case 5, 6, 7, 8:
			at := place{w.cell(), fmt.Sprintf("container-%d", w.rng.IntN(modelContainers))}
			if used[at] {
				continue
			}
			used[at] = true
			old, there := w.endpoints[at]
			if there && w.rng.IntN(4) != 0 {
				d.EndpointsRemoved = append(d.EndpointsRemoved, keyOf(old))
				delete(w.endpoints, at)
				if w.rng.IntN(2) == 0 {
					continue
				}
			}
			w.counter++
			e := api.Endpoint{
				Cell: at.cell, Container: at.container, App: w.app(), Generation: 1, Incarnation: w.counter,
				Address: netip.AddrFrom4([4]byte{10, 255, byte(w.counter >> 8), byte(w.counter)}),
			}
			if there && w.rng.IntN(4) == 0 { // the same endpoint, as another app
				e.Incarnation, e.Address = old.Incarnation, old.Address
				d.EndpointsRemoved = slices.DeleteFunc(d.EndpointsRemoved, func(k api.EndpointKey) bool { return k == keyOf(old) })
			}
			if there && w.rng.IntN(4) == 0 { // its address again, in another incarnation
				e.Address = old.Address
			}
			w.endpoints[at] = e
			d.EndpointsSet = append(d.EndpointsSet, e)
		case 9:
			if w.rng.IntN(4) != 0 { // peers move seldom
				continue
			}
			name := w.cell()
			if used[name] {
				continue
			}
			used[name] = true
			if _, ok := w.peers[name]; ok && w.rng.IntN(2) == 0 {
				delete(w.peers, name)
				d.PeersRemoved = append(d.PeersRemoved, name)
			} else {
				w.peers[name] = api.Peer{Name: name, Kind: api.KindTulle, Generation: uint64(w.rng.IntN(5))}
				d.PeersSet = append(d.PeersSet, w.peers[name])
			}
		case 10:
			r := policy.Route{Name: policy.Hostname(fmt.Sprintf("n%d.apps.internal", w.rng.IntN(3))), App: w.app()}
			if w.rng.IntN(4) == 0 {
				r = policy.Route{Name: r.Name, Address: netip.AddrFrom4([4]byte{10, 255, 0, byte(w.rng.IntN(4))})}
			}
			if used[r] {
				continue
			}
			used[r] = true
			if w.routes[r] {
				delete(w.routes, r)
				d.RoutesRemoved = append(d.RoutesRemoved, r)
			} else {
				w.routes[r] = true
				d.RoutesSet = append(d.RoutesSet, r)
			}
		case 11:
			domain := policy.Hostname(fmt.Sprintf("d%d.internal", w.rng.IntN(3)))
			if used[domain] || w.rng.IntN(4) != 0 {
				continue
			}
			used[domain] = true
			if w.domains[domain] {
				delete(w.domains, domain)
				d.DomainsRemoved = append(d.DomainsRemoved, domain)
			} else {
				w.domains[domain] = true
				d.DomainsSet = append(d.DomainsSet, domain)
			}
		}
	}
	return d
}

// Applying the deltas to a snapshot gives a fresh snapshot, at every revision,
// for every cell: for one that takes each change at once, for one that takes
// several together, and for one that comes back after a while with an old
// revision. Cells that a change does not concern are left out of the first two.
func TestDeltasAddUpToSnapshots(t *testing.T) {
	for seed := range uint64(8) {
		w := newWorld(rand.New(rand.NewPCG(seed, 2)))
		for range 30 {
			w.step()
		}
		x := NewIndex(w.state())
		var cells []string
		for i := range modelCells {
			cells = append(cells, fmt.Sprintf("cell-%d", i))
		}
		cells = append(cells, "cell-empty")

		prompt, lazy := map[string]view{}, map[string]view{}
		owed := map[string][]*Change{}
		past := map[api.Revision]map[string]view{}
		var all []*Change
		for _, c := range cells {
			prompt[c], lazy[c] = w.view(c), w.view(c)
		}
		for step := range 120 {
			before := map[string]view{}
			for _, c := range cells {
				before[c] = prompt[c].clone()
			}
			past[w.revision] = before

			d := w.step()
			ch, err := x.Apply(d)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, ch)
			concerned := map[string]bool{}
			if x.EachConcerned(ch, func(c string) { concerned[c] = true }) {
				for _, c := range cells {
					concerned[c] = true
				}
			}
			for _, c := range cells {
				where := fmt.Sprintf("seed %d step %d %s change %+v", seed, step, c, d)
				want := w.view(c)
				if diff := differ(want, viewOf(x.Snapshot(c))); diff != "" {
					t.Fatalf("%s: snapshot (-want +got):\n%s", where, diff)
				}
				related := x.related(map[string]struct{}{c: {}})
				delete(related, c)
				if diff := cmp.Diff(w.related(c), related); diff != "" {
					t.Fatalf("%s: related cells (-want +got):\n%s", where, diff)
				}
				if concerned[c] || slices.ContainsFunc(owed[c], (*Change).Relates) {
					owed[c] = append(owed[c], ch)
				}
				if concerned[c] {
					if err := prompt[c].apply(x.Delta(c, []*Change{ch})); err != nil {
						t.Fatalf("%s: %v", where, err)
					}
				}
				if diff := differ(want, prompt[c]); diff != "" {
					t.Fatalf("%s: concerned %v, after the delta (-want +got):\n%s", where, concerned[c], diff)
				}
				if w.rng.IntN(6) == 0 {
					if err := lazy[c].apply(x.Delta(c, owed[c])); err != nil {
						t.Fatalf("%s: after %d changes: %v", where, len(owed[c]), err)
					}
					owed[c] = nil
					if diff := differ(want, lazy[c]); diff != "" {
						t.Fatalf("%s: lazy, after the delta (-want +got):\n%s", where, diff)
					}
				}
				if w.rng.IntN(10) == 0 {
					back := w.rng.IntN(len(all))
					from := all[back].revision - 1
					v := past[from][c].clone()
					if err := v.apply(x.Delta(c, all[back:])); err != nil {
						t.Fatalf("%s: from revision %d: %v", where, from, err)
					}
					if diff := differ(want, v); diff != "" {
						t.Fatalf("%s: back with revision %d (-want +got):\n%s", where, from, diff)
					}
				}
			}
		}
	}
}

// A delta for a cell names nothing that never concerned it.
func TestDeltaTellsNoMoreThanConcerns(t *testing.T) {
	for seed := range uint64(20) {
		w := newWorld(rand.New(rand.NewPCG(seed, 3)))
		x := NewIndex(w.state())
		const cell = "cell-0"
		seen := view{
			Policies: map[api.Policy]bool{}, Tags: map[policy.AppID]policy.Tag{}, Endpoints: map[api.EndpointKey]api.Endpoint{},
		}
		remember := func() {
			v := w.view(cell)
			for p := range v.Policies {
				seen.Policies[p] = true
			}
			for k, e := range v.Endpoints {
				seen.Endpoints[k] = e
			}
		}
		remember()
		for range 300 {
			d := w.step()
			ch, err := x.Apply(d)
			if err != nil {
				t.Fatal(err)
			}
			remember()
			got := x.Delta(cell, []*Change{ch})
			for _, p := range got.PoliciesAdded {
				if !seen.Policies[p] {
					t.Fatalf("seed %d: %+v tells policy %v, which never concerned the cell", seed, d, p)
				}
			}
			for _, e := range got.EndpointsSet {
				if _, ok := seen.Endpoints[keyOf(e)]; !ok {
					t.Fatalf("seed %d: %+v tells endpoint %v, which never concerned the cell", seed, d, e)
				}
			}
		}
	}
}
