package overlay

import (
	"fmt"
	"maps"
	"net/netip"

	"tulle/overlay/datapath"
	"tulle/overlay/dns"
	"tulle/overlay/fib"
	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/table"
)

// world is what the control plane told this cell, and what of it the data path
// has. One goroutine at a time uses it (Daemon.mu); it changes the tables and
// the fib in the order that keeps invariants 1 and 2 at every moment.
type world struct {
	self     string // this cell's name
	fib      *fib.Table
	policies *table.Table
	reach    *table.Table
	path     cutter
	tunnels  *tunnels
	names    *dns.Names

	epoch     api.Epoch
	revision  api.Revision
	floor     api.Revision
	known     map[policy.Policy]table.Rule // the zero Rule: an end has no tag yet
	byApp     map[policy.AppID]map[policy.Policy]struct{}
	tags      map[policy.AppID]policy.Tag
	reachable map[table.Rule]int // rules of reach, by how many policies need them
	endpoints map[string]map[netip.Addr]api.Endpoint
	peers     map[string]api.Peer
	lost      []string // cells that nobody hears of
}

// cutter ends flows; it is the datapath's Path.
type cutter interface {
	Cut(pairs []datapath.Pair) int
	CutEndpoint(addr netip.Addr, incarnation uint64) int
	CutPeer(id uint32) int
}

func newWorld(self string, f *fib.Table, policies, reach *table.Table, path cutter, tunnels *tunnels, names *dns.Names) *world {
	return &world{
		self: self, fib: f, policies: policies, reach: reach, path: path, tunnels: tunnels, names: names,
		known: map[policy.Policy]table.Rule{}, byApp: map[policy.AppID]map[policy.Policy]struct{}{},
		tags: map[policy.AppID]policy.Tag{}, reachable: map[table.Rule]int{},
		endpoints: map[string]map[netip.Addr]api.Endpoint{}, peers: map[string]api.Peer{},
	}
}

// incarnation is the number of an endpoint that is never used twice: the lease's
// generation, and the counter in its cell's journal.
func incarnation(generation, counter uint64) uint64 { return generation<<32 | counter&0xffffffff }

func incarnationOf(e api.Endpoint) uint64 { return incarnation(e.Generation, e.Incarnation) }

// take puts an event in force: what it forbids no longer passes and is cut when
// take returns. An error changes nothing.
func (w *world) take(e api.Event) error {
	switch {
	case e.Snapshot != nil:
		d, err := w.difference(e.Snapshot)
		if err != nil {
			return err
		}
		w.apply(d)
		w.epoch, w.revision, w.floor = e.Snapshot.Epoch, e.Snapshot.Revision, e.Snapshot.Floor
	case e.Delta != nil:
		d, err := parse(e.Delta)
		if err != nil {
			return err
		}
		w.apply(d)
		w.revision, w.floor = e.Delta.Revision, e.Delta.Floor
	case e.Heartbeat != nil:
		w.revision, w.floor = e.Heartbeat.Revision, e.Heartbeat.Floor
	}
	w.agree(e)
	w.takeNames(e)
	return nil
}

// change is a Delta with its policies in the domain's type.
type change struct {
	policiesRemoved, policiesAdded []policy.Policy
	tagsRemoved                    []policy.AppID
	tagsSet                        []api.AppTag
	endpointsRemoved               []api.EndpointKey
	endpointsSet                   []api.Endpoint
	peersRemoved                   []string
	peersSet                       []api.Peer
}

func parse(d *api.Delta) (*change, error) {
	removed, err := domain(d.PoliciesRemoved)
	if err != nil {
		return nil, err
	}
	added, err := domain(d.PoliciesAdded)
	if err != nil {
		return nil, err
	}
	return &change{
		policiesRemoved: removed, policiesAdded: added,
		tagsRemoved: d.TagsRemoved, tagsSet: d.TagsSet,
		endpointsRemoved: d.EndpointsRemoved, endpointsSet: d.EndpointsSet,
		peersRemoved: d.PeersRemoved, peersSet: d.PeersSet,
	}, nil
}

func domain(ps []api.Policy) ([]policy.Policy, error) {
	out := make([]policy.Policy, len(ps))
	for i, p := range ps {
		var err error
		if out[i], err = p.Domain(); err != nil {
			return nil, fmt.Errorf("policy from %q to %q: %w", p.Source.ID, p.Destination.ID, err)
		}
	}
	return out, nil
}

// difference is the change that leads from here to the snapshot, so that what
// stays is never taken away in between.
func (w *world) difference(s *api.Snapshot) (*change, error) {
	d := &change{tagsSet: s.Tags, peersSet: s.Peers, endpointsSet: s.Endpoints}
	all, err := domain(s.Policies)
	if err != nil {
		return nil, err
	}
	next := make(map[policy.Policy]bool, len(all))
	for _, p := range all {
		next[p] = true
		if _, ok := w.known[p]; !ok {
			d.policiesAdded = append(d.policiesAdded, p)
		}
	}
	for p := range w.known {
		if !next[p] {
			d.policiesRemoved = append(d.policiesRemoved, p)
		}
	}
	tags := make(map[policy.AppID]bool, len(s.Tags))
	for _, t := range s.Tags {
		tags[t.App] = true
	}
	for app := range w.tags {
		if !tags[app] {
			d.tagsRemoved = append(d.tagsRemoved, app)
		}
	}
	peers := make(map[string]bool, len(s.Peers))
	for _, p := range s.Peers {
		peers[p.Name] = true
	}
	for name := range w.peers {
		if !peers[name] {
			d.peersRemoved = append(d.peersRemoved, name)
		}
	}
	type where struct {
		cell string
		addr netip.Addr
	}
	there := make(map[where]bool, len(s.Endpoints))
	for _, e := range s.Endpoints {
		there[where{e.Cell, e.Address}] = true
	}
	for cell, es := range w.endpoints {
		for addr, e := range es {
			if !there[where{cell, addr}] {
				d.endpointsRemoved = append(d.endpointsRemoved, keyOf(e))
			}
		}
	}
	return d, nil
}

func keyOf(e api.Endpoint) api.EndpointKey {
	return api.EndpointKey{Cell: e.Cell, Container: e.Container, Address: e.Address, Generation: e.Generation, Incarnation: e.Incarnation}
}

// apply takes rules away, then changes who is where, then cuts, and only then
// lets more pass: between any two steps no more is allowed than before or after.
func (w *world) apply(d *change) {
	var cut cuts
	w.removePolicies(d, &cut)
	w.fib.Update(func(b *fib.Builder) { w.place(b, d, &cut) })
	w.tunnel(d)
	for _, id := range cut.peers {
		w.path.CutPeer(id)
	}
	for addr, inc := range cut.endpoints {
		w.path.CutEndpoint(addr, inc)
	}
	if len(cut.pairs) > 0 {
		pairs := make([]datapath.Pair, 0, len(cut.pairs))
		for p := range maps.Keys(cut.pairs) {
			pairs = append(pairs, p)
		}
		w.path.Cut(pairs)
	}
	w.addPolicies(d)
}

// tunnel makes the sessions follow the peers. A peer that is gone from the fib is
// nobody already, whatever still comes out of its session. Those that leave, or
// change their key, go first: a key or an address may have moved between peers.
func (w *world) tunnel(d *change) {
	for _, name := range d.peersRemoved {
		w.tunnels.remove(name)
	}
	for _, p := range d.peersSet {
		if p.Name != w.self {
			w.tunnels.release(p)
		}
	}
	for _, p := range d.peersSet {
		if p.Name != w.self {
			w.tunnels.set(p)
		}
	}
}

// cuts is what a change takes away.
type cuts struct {
	pairs     map[datapath.Pair]struct{}
	endpoints map[netip.Addr]uint64
	peers     []uint32
}

func (c *cuts) rule(r table.Rule) {
	if c.pairs == nil {
		c.pairs = map[datapath.Pair]struct{}{}
	}
	c.pairs[datapath.Pair{Src: r.Src, Dst: r.Dst}] = struct{}{}
}

func (c *cuts) endpoint(e api.Endpoint) {
	if c.endpoints == nil {
		c.endpoints = map[netip.Addr]uint64{}
	}
	c.endpoints[e.Address] = incarnationOf(e)
}

// removePolicies takes out the rules of removed policies, and of all policies
// of apps whose tag changes; the latter come back under the new tag.
func (w *world) removePolicies(d *change, cut *cuts) {
	for _, p := range d.policiesRemoved {
		rule, ok := w.known[p]
		if !ok {
			continue
		}
		w.uninstall(p, rule, cut)
		delete(w.known, p)
		w.names.Allow(p.Source, p.Destination, -1)
		for _, app := range []policy.AppID{p.Source, p.Destination} {
			delete(w.byApp[app], p)
			if len(w.byApp[app]) == 0 {
				delete(w.byApp, app)
			}
		}
	}
	retag := func(app policy.AppID) {
		for p := range w.byApp[app] {
			w.uninstall(p, w.known[p], cut)
			w.known[p] = table.Rule{}
		}
	}
	for _, app := range d.tagsRemoved {
		if _, had := w.tags[app]; had {
			retag(app)
			delete(w.tags, app)
		}
	}
	for _, t := range d.tagsSet {
		if w.tags[t.App] != t.Tag {
			retag(t.App)
			w.tags[t.App] = t.Tag
		}
	}
}

func (w *world) uninstall(p policy.Policy, rule table.Rule, cut *cuts) {
	if rule == (table.Rule{}) {
		return
	}
	w.policies.Remove(rule)
	cut.rule(rule)
	for _, r := range reachRules(rule) {
		if w.reachable[r]--; w.reachable[r] == 0 {
			delete(w.reachable, r)
			w.reach.Remove(r)
			cut.rule(r)
		}
	}
}

// reachRules stand in where nobody tells the far end's tag; see
// datapath.Options.Reach.
func reachRules(r table.Rule) [2]table.Rule {
	out, in := r, r
	out.Dst, in.Src = table.Any, table.Any
	return [2]table.Rule{out, in}
}

// addPolicies enters what is new, and what waited for a tag.
func (w *world) addPolicies(d *change) {
	for _, p := range d.policiesAdded {
		if _, ok := w.known[p]; ok {
			continue
		}
		w.known[p] = table.Rule{}
		w.names.Allow(p.Source, p.Destination, 1)
		for _, app := range []policy.AppID{p.Source, p.Destination} {
			if w.byApp[app] == nil {
				w.byApp[app] = map[policy.Policy]struct{}{}
			}
			w.byApp[app][p] = struct{}{}
		}
		w.install(p)
	}
	for _, t := range d.tagsSet {
		for p := range w.byApp[t.App] {
			w.install(p)
		}
	}
}

func (w *world) install(p policy.Policy) {
	src, dst := w.tags[p.Source], w.tags[p.Destination]
	if src == policy.NoTag || dst == policy.NoTag || w.known[p] != (table.Rule{}) {
		return
	}
	rule := table.Rule{Src: src, Dst: dst, Protocol: p.Protocol, Ports: p.Ports}
	w.known[p] = rule
	w.policies.Add(rule)
	for _, r := range reachRules(rule) {
		if w.reachable[r]++; w.reachable[r] == 1 {
			w.reach.Add(r)
		}
	}
}

// place changes peers, endpoints and tags in one snapshot of the fib.
func (w *world) place(b *fib.Builder, d *change, cut *cuts) {
	old := w.fib.Load() // while it is being built, the published one is the former
	for _, name := range d.peersRemoved {
		if p := old.Peer(name); p != nil {
			cut.peers = append(cut.peers, p.ID)
		}
		b.DeletePeer(name)
		delete(w.peers, name)
	}
	for _, k := range d.endpointsRemoved {
		w.removeEndpoint(b, k, cut)
	}
	// What moves between cells is taken from its former place first.
	moved := make([]api.Peer, 0, len(d.peersSet))
	for _, p := range d.peersSet {
		if p.Name == w.self || w.peers[p.Name] == p {
			continue
		}
		moved = append(moved, p)
		if was := w.peers[p.Name]; was.Name != "" && was.Subnet != p.Subnet {
			b.DeletePeer(p.Name)
		}
	}
	for _, p := range moved {
		was := old.Peer(p.Name)
		id := b.PutPeer(peerOf(p, w.tunnels.mode(p)))
		if was != nil && was.ID != id {
			cut.peers = append(cut.peers, was.ID)
		}
		w.peers[p.Name] = p
		for _, e := range w.endpoints[p.Name] {
			w.putEndpoint(b, e)
		}
	}
	for _, e := range d.endpointsSet {
		if e.Cell == w.self {
			continue
		}
		if was, ok := w.endpoints[e.Cell][e.Address]; ok && incarnationOf(was) != incarnationOf(e) {
			cut.endpoint(was)
		}
		if w.endpoints[e.Cell] == nil {
			w.endpoints[e.Cell] = map[netip.Addr]api.Endpoint{}
		}
		w.endpoints[e.Cell][e.Address] = e
		w.putEndpoint(b, e)
	}
	for _, app := range d.tagsRemoved {
		b.SetTag(app, policy.NoTag)
	}
	for _, t := range d.tagsSet {
		b.SetTag(t.App, t.Tag)
	}
}

// removeEndpoint takes out the incarnation that k names, not a later one that
// already has its address.
func (w *world) removeEndpoint(b *fib.Builder, k api.EndpointKey, cut *cuts) {
	e, ok := w.endpoints[k.Cell][k.Address]
	if !ok || incarnationOf(e) != incarnation(k.Generation, k.Incarnation) {
		return
	}
	delete(w.endpoints[k.Cell], k.Address)
	if len(w.endpoints[k.Cell]) == 0 {
		delete(w.endpoints, k.Cell)
	}
	cut.endpoint(e)
	if _, r, _ := b.Lookup(k.Address); r != nil && r.Incarnation == incarnationOf(e) {
		b.DeleteRemote(k.Address)
	}
}

// putEndpoint enters an endpoint under its peer. One of another generation of
// the peer's lease is void; it comes again, or goes, with the peer's own news.
func (w *world) putEndpoint(b *fib.Builder, e api.Endpoint) {
	p, ok := w.peers[e.Cell]
	if !ok || p.Generation != e.Generation || !p.Subnet.Contains(e.Address) {
		return
	}
	b.PutRemote(fib.Remote{Addr: e.Address, App: e.App, Tag: w.tags[e.App], Incarnation: incarnationOf(e)})
}

func peerOf(p api.Peer, mode fib.Mode) fib.Peer {
	f := fib.Peer{Name: p.Name, Mode: mode, Underlay: netip.AddrPortFrom(p.Underlay, p.Port), Subnet: p.Subnet, Generation: p.Generation}
	if p.Kind == api.KindSilk {
		f.Kind = fib.Silk
	}
	if mode == fib.WireGuard {
		f.Tunnel = p.Tunnel
	}
	return f
}
