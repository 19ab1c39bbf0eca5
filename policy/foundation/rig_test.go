package foundation_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/foundation"
	"tulle/policy/foundation/foundationtest"
)

const patience = 20 * time.Second

var network = netip.MustParsePrefix("10.255.0.0/16")

const (
	self  = "192.0.2.1"
	other = "192.0.2.2"
)

// rig is a client of a foundation, and what its watch has said.
type rig struct {
	*testing.T
	*foundationtest.Foundation
	ctx    context.Context
	client *foundation.Client
	lists  uint64

	mu      sync.Mutex    // guards the fields below
	begun   *api.Snapshot // the first
	state   *api.Snapshot
	at      api.Revision // of the last event
	events  int
	refuse  error
	changed chan struct{}
}

func newRig(t *testing.T, change func(*foundation.Options)) *rig {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	r := &rig{T: t, Foundation: foundationtest.New(t, network), ctx: ctx, changed: make(chan struct{})}
	o := r.Options()
	o.Underlay = netip.MustParseAddr(self)
	if change != nil {
		change(&o)
	}
	var err error
	if r.client, err = foundation.New(o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.client.Close)
	return r
}

// watch runs the watch until the test ends.
func (r *rig) watch() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.client.Watch(ctx, r.take) }()
	r.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			r.Errorf("watch: %v", err)
		}
	})
}

func (r *rig) take(_ context.Context, e api.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refuse != nil {
		return r.refuse
	}
	switch {
	case e.Snapshot != nil:
		r.state, r.at = e.Snapshot, e.Snapshot.Revision
		if r.begun == nil {
			r.begun = r.state
		}
		if e.Snapshot.Floor != r.at {
			r.Errorf("floor %d at revision %d", e.Snapshot.Floor, r.at)
		}
	case e.Heartbeat != nil && r.state != nil:
		r.at = e.Heartbeat.Revision
		if e.Heartbeat.Floor != r.at {
			r.Errorf("floor %d at revision %d", e.Heartbeat.Floor, r.at)
		}
	default:
		r.Errorf("event %+v where a snapshot was due", e)
	}
	r.events++
	close(r.changed)
	r.changed = make(chan struct{})
	return nil
}

// until waits for what the watch has said to be so.
func (r *rig) until(what string, ok func(*api.Snapshot) bool) {
	r.Helper()
	for {
		r.mu.Lock()
		yes, changed := r.state != nil && ok(r.state), r.changed
		r.mu.Unlock()
		if yes {
			return
		}
		select {
		case <-changed:
		case <-r.ctx.Done():
			r.Fatalf("never: %s; it is %+v", what, r.said())
		}
	}
}

func (r *rig) said() *api.Snapshot {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state
}

func (r *rig) revision() api.Revision {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.at
}

func (r *rig) connected(want bool) {
	r.Helper()
	for {
		is, changed := r.client.Connection()
		if is == want {
			return
		}
		select {
		case <-changed:
		case <-r.ctx.Done():
			r.Fatalf("never connected: %v", want)
		}
	}
}

// hosts is the cell's list of endpoints: one container of each app.
func (r *rig) hosts(apps ...policy.AppID) api.EndpointsResponse {
	r.Helper()
	r.lists++
	q := api.EndpointsRequest{Generation: 1, Sequence: r.lists}
	for _, a := range apps {
		q.Endpoints = append(q.Endpoints, api.EndpointRegistration{Container: "c-" + string(a), App: api.AppRef{GUID: a, Space: "space-of-" + string(a)}})
	}
	answer, err := r.client.SetEndpoints(r.ctx, q)
	if err != nil {
		r.Fatal(err)
	}
	return answer
}

func (r *rig) wait(s interface {
	Until(context.Context, string) error
}, request string) {
	r.Helper()
	if err := s.Until(r.ctx, request); err != nil {
		r.Fatal(err)
	}
}

func tcp(src, dst policy.AppID, port uint16) policy.Policy {
	return policy.Policy{Source: src, Destination: dst, Protocol: policy.TCP, Ports: policy.PortRange{Start: port, End: port}}
}

// has reports whether exactly these policies are there.
func has(s *api.Snapshot, want ...policy.Policy) bool {
	if len(s.Policies) != len(want) {
		return false
	}
	for _, p := range want {
		if !slices.Contains(s.Policies, api.FromDomain(p)) {
			return false
		}
	}
	return true
}

func tagOf(s *api.Snapshot, app policy.AppID) policy.Tag {
	for _, t := range s.Tags {
		if t.App == app {
			return t.Tag
		}
	}
	return policy.NoTag
}

func peerAt(s *api.Snapshot, underlay string) (api.Peer, bool) {
	for _, p := range s.Peers {
		if p.Underlay.String() == underlay {
			return p, true
		}
	}
	return api.Peer{}, false
}
