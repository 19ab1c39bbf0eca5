package overlay

import (
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"testing"

	"tulle/overlay/datapath"
	"tulle/overlay/dns"
	"tulle/overlay/fib"
	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/table"
)

func mustPrefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// recorder is a cutter that holds what it is told against the tables: nothing
// may be cut before it is forbidden.
type recorder struct {
	pairs     map[datapath.Pair]bool
	endpoints map[netip.Addr]uint64
	peers     int
}

func (r *recorder) Cut(pairs []datapath.Pair) int {
	for _, p := range pairs {
		r.pairs[p] = true
	}
	return 0
}

func (r *recorder) CutEndpoint(a netip.Addr, incarnation uint64) int {
	r.endpoints[a] = incarnation
	return 0
}

func (r *recorder) CutPeer(uint32) int { r.peers++; return 0 }

func emptyWorld(t *testing.T) (*world, *recorder) {
	t.Helper()
	f, err := fib.New(network, mustPrefix("10.250.1.0/24"))
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{pairs: map[datapath.Pair]bool{}, endpoints: map[netip.Addr]uint64{}}
	return newWorld("self", f, table.New(), table.New(), r, newTunnels(slog.New(slog.DiscardHandler)), dns.NewNames(netip.Prefix{})), r
}

// told is what a policy server would say, in the obvious form.
type told struct {
	revision  api.Revision
	policies  map[policy.Policy]bool
	tags      map[policy.AppID]policy.Tag
	endpoints map[netip.Addr]api.Endpoint
	peers     map[string]api.Peer
}

func (w *told) snapshot() *api.Snapshot {
	s := &api.Snapshot{Epoch: "e", Revision: w.revision}
	for p := range w.policies {
		s.Policies = append(s.Policies, api.FromDomain(p))
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
	return s
}

func (w *told) clone() *told {
	return &told{revision: w.revision, policies: maps.Clone(w.policies), tags: maps.Clone(w.tags),
		endpoints: maps.Clone(w.endpoints), peers: maps.Clone(w.peers)}
}

// step changes a few things at random, as they can change together.
func (w *told) step(rng *rand.Rand) {
	w.revision++
	app := func() policy.AppID { return policy.AppID(rune('a' + rng.IntN(5))) }
	for range 1 + rng.IntN(4) {
		switch rng.IntN(5) {
		case 0, 1:
			p := tcp(app(), app(), uint16(1+rng.IntN(3)))
			if w.policies[p] {
				delete(w.policies, p)
			} else {
				w.policies[p] = true
			}
		case 2: // tags move between apps
			a := app()
			tag := policy.Tag(1 + rng.IntN(8))
			for other, had := range w.tags {
				if had == tag {
					delete(w.tags, other)
				}
			}
			if rng.IntN(3) > 0 {
				w.tags[a] = tag
			} else {
				delete(w.tags, a)
			}
		case 3:
			cell := 2 + rng.IntN(3)
			name := fmt.Sprintf("cell-%d", cell)
			if rng.IntN(3) == 0 {
				delete(w.peers, name)
				for a, e := range w.endpoints {
					if e.Cell == name {
						delete(w.endpoints, a)
					}
				}
				continue
			}
			p := api.Peer{Name: name, Kind: api.KindTulle, Mode: api.ModeVXLAN, Port: 4789, Generation: uint64(1 + rng.IntN(2)),
				Underlay: netip.AddrFrom4([4]byte{192, 0, 2, byte(cell)}), Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 250, byte(cell), 0}), 24)}
			if w.peers[name].Generation != p.Generation {
				for a, e := range w.endpoints {
					if e.Cell == name {
						delete(w.endpoints, a)
					}
				}
			}
			w.peers[name] = p
		case 4:
			for name, p := range w.peers {
				a := p.Subnet.Addr().Next()
				for range rng.IntN(4) {
					a = a.Next()
				}
				if rng.IntN(3) == 0 {
					delete(w.endpoints, a)
				} else {
					w.endpoints[a] = api.Endpoint{Cell: name, Container: fmt.Sprint("c", w.revision, a), Address: a, App: app(),
						Generation: p.Generation, Incarnation: uint64(w.revision)}
				}
				break
			}
		}
	}
}

// delta is what leads from old to w.
func (w *told) delta(old *told) *api.Delta {
	d := &api.Delta{Revision: w.revision}
	for p := range old.policies {
		if !w.policies[p] {
			d.PoliciesRemoved = append(d.PoliciesRemoved, api.FromDomain(p))
		}
	}
	for p := range w.policies {
		if !old.policies[p] {
			d.PoliciesAdded = append(d.PoliciesAdded, api.FromDomain(p))
		}
	}
	for app := range old.tags {
		if _, ok := w.tags[app]; !ok {
			d.TagsRemoved = append(d.TagsRemoved, app)
		}
	}
	for app, tag := range w.tags {
		if old.tags[app] != tag {
			d.TagsSet = append(d.TagsSet, api.AppTag{App: app, Tag: tag})
		}
	}
	for a, e := range old.endpoints {
		if w.endpoints[a].Container != e.Container {
			d.EndpointsRemoved = append(d.EndpointsRemoved, keyOf(e))
		}
	}
	for a, e := range w.endpoints {
		if old.endpoints[a] != e {
			d.EndpointsSet = append(d.EndpointsSet, e)
		}
	}
	for name := range old.peers {
		if _, ok := w.peers[name]; !ok {
			d.PeersRemoved = append(d.PeersRemoved, name)
		}
	}
	for name, p := range w.peers {
		if old.peers[name] != p {
			d.PeersSet = append(d.PeersSet, p)
		}
	}
	return d
}

// Deltas and snapshots in any mixture lead to what is true, by the obvious
// reading, and everything that was taken away was cut.
func TestWorldAtRandom(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	w, cuts := emptyWorld(t)
	truth := &told{policies: map[policy.Policy]bool{}, tags: map[policy.AppID]policy.Tag{},
		endpoints: map[netip.Addr]api.Endpoint{}, peers: map[string]api.Peer{}}
	if err := w.take(api.Event{Snapshot: truth.snapshot()}); err != nil {
		t.Fatal(err)
	}
	for range 5000 {
		before := truth.clone()
		truth.step(rng)
		clear(cuts.pairs)
		clear(cuts.endpoints)
		e := api.Event{Delta: truth.delta(before)}
		if rng.IntN(8) == 0 {
			e = api.Event{Snapshot: truth.snapshot()}
		}
		if err := w.take(e); err != nil {
			t.Fatal(err)
		}
		check(t, w, truth)
		checkCuts(t, cuts, before, truth)
		if t.Failed() {
			t.Fatalf("after %+v", e)
		}
	}
}

func check(t *testing.T, w *world, truth *told) {
	t.Helper()
	rules := 0
	for p := range truth.policies {
		if truth.tags[p.Source] != 0 && truth.tags[p.Destination] != 0 {
			rules++
		}
	}
	if got := w.policies.Len(); got != rules {
		t.Errorf("%d rules, want %d", got, rules)
	}
	for a, src := range truth.tags {
		for b, dst := range truth.tags {
			for port := uint16(1); port <= 3; port++ {
				if got, want := w.policies.Lookup(src, dst, policy.TCP, port), truth.policies[tcp(a, b, port)]; got != want {
					t.Errorf("%s to %s port %d: %t, want %t", a, b, port, got, want)
				}
			}
		}
		out := false
		for p := range truth.policies {
			out = out || p.Source == a && p.Ports.Contains(1) && truth.tags[p.Destination] != 0
		}
		if got := w.reach.Lookup(src, table.Any, policy.TCP, 1); got != out {
			t.Errorf("%s to anybody: %t, want %t", a, got, out)
		}
	}
	snap := w.fib.Load()
	peers, _, remotes := snap.Len()
	if peers != len(truth.peers) || remotes != len(truth.endpoints) {
		t.Errorf("%d peers, %d endpoints; want %d, %d", peers, remotes, len(truth.peers), len(truth.endpoints))
	}
	for a, e := range truth.endpoints {
		_, r, _ := snap.Lookup(a)
		if r == nil || r.App != e.App || r.Tag != truth.tags[e.App] || r.Incarnation != incarnationOf(e) {
			t.Errorf("%s is %+v, want %+v with tag %v", a, r, e, truth.tags[e.App])
		}
	}
}

func checkCuts(t *testing.T, cuts *recorder, before, after *told) {
	t.Helper()
	for p := range before.policies {
		src, dst := before.tags[p.Source], before.tags[p.Destination]
		if src == 0 || dst == 0 {
			continue
		}
		holds := after.policies[p] && after.tags[p.Source] == src && after.tags[p.Destination] == dst
		if !holds && !cuts.pairs[datapath.Pair{Src: src, Dst: dst}] {
			t.Errorf("%v went and was not cut", p)
		}
	}
	for a, e := range before.endpoints {
		p, stays := after.peers[e.Cell]
		if stays && p.Generation == e.Generation && incarnationOf(after.endpoints[a]) != incarnationOf(e) && cuts.endpoints[a] != incarnationOf(e) {
			t.Errorf("endpoint %s went and was not cut", a)
		}
	}
}

func TestWorldRefusesNonsense(t *testing.T) {
	w, _ := emptyWorld(t)
	bad := api.FromDomain(tcp("a", "b", 1))
	bad.Destination.Protocol = "icmp"
	if err := w.take(api.Event{Snapshot: &api.Snapshot{Epoch: "e", Revision: 3, Policies: []api.Policy{bad}}}); err == nil {
		t.Error("taken in")
	}
	if w.revision != 0 || w.policies.Len() != 0 {
		t.Error("something of it stayed")
	}
}
