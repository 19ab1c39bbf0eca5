package storetest

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

var historyTests = map[string]func(*testing.T, Open){
	"old changes are compacted, the rest has no gap": func(t *testing.T, open Open) {
		f := start(t, open, func(c *Config) { c.History = 10 })
		for i := range 25 {
			f.add(allow("a", "b", policy.TCP, uint16(i+1)))
		}
		f.reopen()
		for _, after := range []api.Revision{0, 1, 14, 26, 1 << 40} {
			if _, err := f.Changes(t.Context(), after, 100); !errors.Is(err, store.ErrCompacted) {
				t.Errorf("after %d: %v, want %v", after, err, store.ErrCompacted)
			}
		}
		for _, after := range []api.Revision{15, 20, 24, 25} {
			ds := f.since(after)
			for i, d := range ds {
				if d.Revision != after+api.Revision(i)+1 {
					t.Errorf("after %d the %d-th change is %d", after, i, d.Revision)
				}
			}
			if len(ds) != int(25-after) {
				t.Errorf("%d changes after %d, want %d", len(ds), after, 25-after)
			}
		}
		ds, err := f.Changes(t.Context(), 15, 3)
		f.must(err)
		if len(ds) != 3 || ds[2].Revision != 18 {
			t.Errorf("at most three after 15: %+v", ds)
		}
	},
	"a change that is refused wakes nobody, one that is stored does": func(t *testing.T, open Open) {
		f := start(t, open)
		changed := f.Changed()
		f.remove(allow("a", "b", policy.TCP, 1))
		if _, err := f.SetEndpoints(t.Context(), "nobody", api.EndpointsRequest{}); err == nil {
			t.Error("endpoints without a lease were taken")
		}
		select {
		case <-changed:
			t.Error("woken without a change")
		default:
		}
		f.add(allow("a", "b", policy.TCP, 1))
		select {
		case <-changed:
		default:
			t.Error("not woken by a change")
		}
	},
	// Eight writers of three kinds, and a watcher who only follows Changes: it
	// must see every revision once, in order, and in the end know exactly what
	// State says.
	"a watcher among many writers misses nothing": func(t *testing.T, open Open) {
		const writers, rounds = 8, 25
		f := start(t, open, func(c *Config) { c.History = 1 << 20 })
		view := newView()
		stop := make(chan struct{})
		watched := make(chan error, 1)
		go func() { watched <- follow(t, f.Store, view, stop) }()

		var wg sync.WaitGroup
		errs := make(chan error, writers*rounds*3)
		for w := range writers {
			wg.Go(func() {
				cell := fmt.Sprint("cell-", w)
				underlay := fmt.Sprintf("192.0.2.%d:4789", w+1)
				l, err := f.Lease(t.Context(), cell, at(underlay))
				errs <- err
				for i := range rounds {
					app := policy.AppID(fmt.Sprintf("app-%d", i%5))
					p := allow(app, "shared", policy.TCP, uint16(w+1), uint16(w+1+i))
					_, err := f.AddPolicies(t.Context(), []policy.Policy{p})
					errs <- err
					r := api.EndpointsRequest{Generation: l.Generation, Sequence: uint64(i + 1)}
					for n := range i % 4 {
						r.Endpoints = append(r.Endpoints, api.EndpointRegistration{Container: fmt.Sprint("k", n),
							Address: host(l, byte(i+n+1)), App: api.AppRef{Name: string(app)}, Incarnation: uint64(i)})
					}
					_, err = f.SetEndpoints(t.Context(), cell, r)
					errs <- err
					if i%2 == 0 {
						_, err = f.RemovePolicies(t.Context(), []policy.Policy{p})
						errs <- err
					}
				}
			})
		}
		wg.Wait()
		close(errs)
		for err := range errs {
			f.must(err)
		}
		close(stop)
		f.must(<-watched)
		s := f.state()
		if view.revision != s.Revision {
			t.Fatalf("the watcher ended at %d, the store at %d", view.revision, s.Revision)
		}
		want := newView()
		want.reset(s)
		same(t, "policies", view.policies, want.policies)
		same(t, "tags", view.tags, want.tags)
		same(t, "endpoints", view.endpoints, want.endpoints)
		same(t, "peers", view.peers, want.peers)
	},
}

// view is what a watcher knows.
type view struct {
	revision  api.Revision
	policies  map[api.Policy]bool
	tags      map[policy.AppID]policy.Tag
	endpoints map[api.EndpointKey]api.Endpoint
	peers     map[string]api.Peer
}

func newView() *view {
	return &view{policies: map[api.Policy]bool{}, tags: map[policy.AppID]policy.Tag{},
		endpoints: map[api.EndpointKey]api.Endpoint{}, peers: map[string]api.Peer{}}
}

func keyOf(e api.Endpoint) api.EndpointKey {
	return api.EndpointKey{Cell: e.Cell, Container: e.Container, Address: e.Address, Generation: e.Generation, Incarnation: e.Incarnation}
}

func (v *view) reset(s *store.State) {
	v.revision = s.Revision
	for _, p := range s.Policies {
		v.policies[api.FromDomain(p)] = true
	}
	for _, t := range s.Tags {
		v.tags[t.App] = t.Tag
	}
	for _, e := range s.Endpoints {
		v.endpoints[keyOf(e)] = e
	}
	for _, p := range s.Peers {
		v.peers[p.Name] = p
	}
}

// apply applies one change, and complains of one that removes what is not
// there or adds what is.
func (v *view) apply(d api.Delta) error {
	if d.Revision != v.revision+1 {
		return fmt.Errorf("revision %d follows %d", d.Revision, v.revision)
	}
	v.revision = d.Revision
	for _, p := range d.PoliciesRemoved {
		if !v.policies[p] {
			return fmt.Errorf("revision %d removes %v, which is not there", d.Revision, p)
		}
		delete(v.policies, p)
	}
	for _, p := range d.PoliciesAdded {
		if v.policies[p] {
			return fmt.Errorf("revision %d adds %v, which is there", d.Revision, p)
		}
		v.policies[p] = true
	}
	for _, app := range d.TagsRemoved {
		delete(v.tags, app)
	}
	for _, t := range d.TagsSet {
		v.tags[t.App] = t.Tag
	}
	for _, k := range d.EndpointsRemoved {
		if _, ok := v.endpoints[k]; !ok {
			return fmt.Errorf("revision %d removes endpoint %v, which is not there", d.Revision, k)
		}
		delete(v.endpoints, k)
	}
	for _, e := range d.EndpointsSet {
		v.endpoints[keyOf(e)] = e
	}
	for _, name := range d.PeersRemoved {
		delete(v.peers, name)
	}
	for _, p := range d.PeersSet {
		v.peers[p.Name] = p
	}
	return nil
}

// follow applies changes until stop is closed and nothing is left.
func follow(t *testing.T, s store.Store, v *view, stop <-chan struct{}) error {
	for {
		changed := s.Changed()
		ds, err := s.Changes(t.Context(), v.revision, 7)
		if err != nil {
			return err
		}
		for _, d := range ds {
			if err := v.apply(d); err != nil {
				return err
			}
		}
		if len(ds) > 0 {
			continue
		}
		select {
		case <-changed:
		case <-stop:
			select {
			case <-changed: // the last commit came before the stop
			default:
				return nil
			}
		}
	}
}
