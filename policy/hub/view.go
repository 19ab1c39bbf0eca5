package hub

import (
	"tulle/policy"
	"tulle/policy/api"
)

// Snapshot is all that concerns the cell. The order within the lists means
// nothing. Floor is left to the hub.
func (x *Index) Snapshot(cell string) *api.Snapshot {
	s := &api.Snapshot{
		Epoch: x.epoch, Revision: x.revision,
		Policies: []api.Policy{}, Tags: []api.AppTag{}, Endpoints: []api.Endpoint{}, Peers: []api.Peer{},
	}
	own := x.own[cell]
	known := make(map[policy.AppID]struct{}, len(own))
	partners := make(map[policy.AppID]struct{})
	for app := range own {
		known[app] = struct{}{}
		for p := range x.policies[app] {
			// Between two apps of this cell: listed once, at its source.
			if p.Source == app || own[p.Source] == 0 {
				s.Policies = append(s.Policies, api.FromDomain(p))
			}
		}
		for a := range x.partners[app] {
			known[a], partners[a] = struct{}{}, struct{}{}
		}
	}
	for app := range known {
		if tag, ok := x.tags[app]; ok {
			s.Tags = append(s.Tags, api.AppTag{App: app, Tag: tag})
		}
	}
	for app := range partners {
		for at := range x.instances[app] {
			if at.cell != cell {
				s.Endpoints = append(s.Endpoints, x.places[at])
			}
		}
	}
	for name, p := range x.peers {
		if name != cell {
			s.Peers = append(s.Peers, p)
		}
	}
	s.Secrets = x.secretsOf(cell)
	x.nameSnapshot(cell, s)
	return s
}

// EachConcerned calls yield for the cells whose view the change may have moved,
// and for those whose endpoints it changed; a cell may come more than once. Ask
// right after Apply. all is true when the change concerns every cell.
func (x *Index) EachConcerned(ch *Change, yield func(cell string)) (all bool) {
	if len(ch.peers) > 0 || ch.concernsNames() {
		return true
	}
	hosting := func(app policy.AppID) {
		for cell := range x.hosts[app] {
			yield(cell)
		}
	}
	partners := func(app policy.AppID) {
		for a := range x.partners[app] {
			hosting(a)
		}
	}
	for _, p := range ch.policies {
		hosting(p.Source)
		hosting(p.Destination)
	}
	for _, app := range ch.tags {
		hosting(app)
		partners(app)
	}
	for _, m := range ch.moved {
		yield(m.cell)
		if m.before != nil {
			partners(m.before.App)
		}
		if m.after != nil && (m.before == nil || m.before.App != m.after.App) {
			partners(m.after.App)
		}
	}
	for _, h := range ch.hosting {
		yield(h.cell)
	}
	for _, k := range ch.secrets {
		yield(k.from)
		yield(k.to)
	}
	return false
}

// Delta leads the cell from where it was before the first of changes to the
// present. Those that did not concern the cell may be left out, but for those
// behind one that Relates. It may set what the cell has and remove what it has
// not. Floor is left to the hub.
func (x *Index) Delta(cell string, changes []*Change) *api.Delta {
	b := deltaBuilder{
		x: x, cell: cell, own: x.own[cell],
		flipped: make(map[policy.AppID]struct{}),
		slices:  make(map[policy.AppID]struct{}),
	}
	b.scope(changes)
	d := &api.Delta{Revision: x.revision}
	b.policies(changes, d)
	b.tags(changes, d)
	b.endpoints(changes, d)
	b.peers(changes, d)
	b.secrets(changes, d)
	b.names(changes, d)
	return d
}

// deltaBuilder looks at a run of changes with one cell's eyes.
type deltaBuilder struct {
	x       *Index
	cell    string
	own     counts[policy.AppID]
	flipped map[policy.AppID]struct{} // apps the cell began or ceased to host in the run
	slices  map[policy.AppID]struct{} // apps that may have come into or gone out of the cell's sight
}

// mine reports whether the cell hosts app, or did at some time of the run.
func (b *deltaBuilder) mine(app policy.AppID) bool {
	if b.own[app] > 0 {
		return true
	}
	_, ok := b.flipped[app]
	return ok
}

// seen reports whether app's endpoints may have been in the cell's sight at
// some time of the run.
func (b *deltaBuilder) seen(app policy.AppID) bool {
	if _, ok := b.slices[app]; ok {
		return true
	}
	return b.x.partnered(app, b.cell)
}

func (b *deltaBuilder) scope(changes []*Change) {
	for _, ch := range changes {
		for _, h := range ch.hosting {
			if h.cell == b.cell {
				b.flipped[h.app] = struct{}{}
			}
		}
	}
	for app := range b.flipped {
		b.slices[app] = struct{}{}
		for a := range b.x.partners[app] {
			b.slices[a] = struct{}{}
		}
	}
	for _, ch := range changes {
		for _, pair := range ch.pairs {
			if b.mine(pair[0]) {
				b.slices[pair[1]] = struct{}{}
			}
			if b.mine(pair[1]) {
				b.slices[pair[0]] = struct{}{}
			}
		}
	}
}

func (b *deltaBuilder) policies(changes []*Change, d *api.Delta) {
	touched := make(map[policy.Policy]struct{})
	for app := range b.flipped {
		for p := range b.x.policies[app] {
			touched[p] = struct{}{}
		}
	}
	for _, ch := range changes {
		for _, p := range ch.policies {
			if b.mine(p.Source) || b.mine(p.Destination) {
				touched[p] = struct{}{}
			}
		}
	}
	for p := range touched {
		if b.x.policies.has(p.Source, p) && (b.own[p.Source] > 0 || b.own[p.Destination] > 0) {
			d.PoliciesAdded = append(d.PoliciesAdded, api.FromDomain(p))
		} else {
			d.PoliciesRemoved = append(d.PoliciesRemoved, api.FromDomain(p))
		}
	}
}

func (b *deltaBuilder) tags(changes []*Change, d *api.Delta) {
	moved := make(map[policy.AppID]bool) // true: the tag itself moved, not only the app's being known
	for app := range b.slices {
		moved[app] = false
	}
	for _, ch := range changes {
		for _, app := range ch.tags {
			if b.mine(app) || b.seen(app) {
				moved[app] = true
			}
		}
	}
	for app, itself := range moved {
		tag, tagged := b.x.tags[app]
		known := b.own[app] > 0 || b.x.partnered(app, b.cell)
		switch {
		case tagged && known:
			d.TagsSet = append(d.TagsSet, api.AppTag{App: app, Tag: tag})
		case tagged || itself: // else it had none before either
			d.TagsRemoved = append(d.TagsRemoved, app)
		}
	}
}

func (b *deltaBuilder) endpoints(changes []*Change, d *api.Delta) {
	touched := make(map[place]map[api.EndpointKey]struct{}) // with the keys that were there
	touch := func(at place, gone *api.Endpoint) {
		if touched[at] == nil {
			touched[at] = make(map[api.EndpointKey]struct{})
		}
		if gone != nil {
			touched[at][keyOf(*gone)] = struct{}{}
		}
	}
	for app := range b.slices {
		for at := range b.x.instances[app] {
			if at.cell != b.cell {
				e := b.x.places[at]
				touch(at, &e)
			}
		}
	}
	for _, ch := range changes {
		for _, m := range ch.moved {
			if m.cell == b.cell {
				continue
			}
			if m.before != nil && b.seen(m.before.App) {
				touch(m.place, m.before)
			}
			if m.after != nil && b.seen(m.after.App) {
				touch(m.place, nil)
			}
		}
	}
	for at, gone := range touched {
		if e, there := b.x.places[at]; there && b.x.partnered(e.App, b.cell) {
			d.EndpointsSet = append(d.EndpointsSet, e)
			delete(gone, keyOf(e))
		}
		for key := range gone {
			d.EndpointsRemoved = append(d.EndpointsRemoved, key)
		}
	}
}

func (b *deltaBuilder) peers(changes []*Change, d *api.Delta) {
	touched := make(map[string]struct{})
	for _, ch := range changes {
		for _, name := range ch.peers {
			if name != b.cell {
				touched[name] = struct{}{}
			}
		}
	}
	for name := range touched {
		if p, ok := b.x.peers[name]; ok {
			d.PeersSet = append(d.PeersSet, p)
		} else {
			d.PeersRemoved = append(d.PeersRemoved, name)
		}
	}
}
