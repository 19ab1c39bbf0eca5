package server_test

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/ca"
	"tulle/policy/client"
)

// watcher is a cell's client on its own mutual-TLS connection, with a watch open
// and, as far as the server knows, one container of each of its apps.
type watcher struct {
	*client.Client
	w     *world
	lease api.Lease
	stop  func()

	mu       sync.Mutex // guards what follows
	moved    chan struct{}
	gate     chan struct{} // the handler waits for it to close; nil: goes on
	reached  api.Revision
	epoch    api.Epoch
	policies map[api.Policy]bool

	routes    map[policy.Route]bool
	instances map[netip.Addr]api.Instance
}

// cell makes one that hosts apps, and waits until they are in force.
func (w *world) cell(name string, apps ...policy.AppID) *watcher {
	w.t.Helper()
	cred, err := w.roots.Cells.IssueCell(name, []ca.Space{ca.AnySpace}, 0)
	w.must(err)
	dir := filepath.Join(w.t.TempDir(), name)
	w.must(ca.WriteCell(dir, cred, w.roots.Server))
	w.cells++
	return w.join(name, dir, w.cells, api.LeaseRequest{}, apps...)
}

// join is a cell with the credentials in dir. held is the lease it has, if any.
func (w *world) join(name, dir string, number uint16, held api.LeaseRequest, apps ...policy.AppID) *watcher {
	w.t.Helper()
	cl, err := client.New(client.Options{
		Server: "https://" + w.server.Addresses().Internal, Credentials: dir,
		AckEvery: 100 * time.Millisecond, BackoffMin: 5 * time.Millisecond, BackoffMax: 50 * time.Millisecond,
	})
	w.must(err)
	c := &watcher{Client: cl, w: w, moved: make(chan struct{})}
	held.Underlay, held.Port, held.Mode = netip.MustParseAddr("127.0.0.1"), 40000+number, api.ModeVXLAN
	c.lease, err = cl.Lease(w.t.Context(), held)
	w.must(err)
	req := api.EndpointsRequest{Generation: c.lease.Generation, Sequence: 1}
	addr := c.lease.Subnet.Addr()
	for i, app := range apps {
		addr = addr.Next()
		req.Endpoints = append(req.Endpoints, api.EndpointRegistration{
			Container: fmt.Sprintf("%s-%d", app, i), Address: addr, App: api.AppRef{GUID: app}, Incarnation: uint64(i + 1),
		})
	}
	answer, err := cl.SetEndpoints(w.t.Context(), req)
	w.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { _ = cl.Watch(ctx, c.handle); close(done) }() // it ends with ctx's error alone
	c.stop = sync.OnceFunc(func() {
		c.release()
		cancel()
		<-done
		cl.Close()
	})
	w.t.Cleanup(c.stop)
	c.until(fmt.Sprintf("%s reaches revision %d", name, answer.Revision), func() bool { return c.reached >= answer.Revision })
	return c
}

func (c *watcher) handle(_ context.Context, e api.Event) error {
	c.mu.Lock()
	gate := c.gate
	c.mu.Unlock()
	if gate != nil {
		<-gate
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case e.Snapshot != nil:
		c.epoch, c.reached, c.policies = e.Snapshot.Epoch, e.Snapshot.Revision, map[api.Policy]bool{}
		for _, p := range e.Snapshot.Policies {
			c.policies[p] = true
		}
		c.routes, c.instances = map[policy.Route]bool{}, map[netip.Addr]api.Instance{}
		c.names(nil, e.Snapshot.Routes, nil, e.Snapshot.Instances)
	case e.Delta != nil:
		c.reached = e.Delta.Revision
		for _, p := range e.Delta.PoliciesRemoved {
			delete(c.policies, p)
		}
		for _, p := range e.Delta.PoliciesAdded {
			c.policies[p] = true
		}
		c.names(e.Delta.RoutesRemoved, e.Delta.RoutesSet, e.Delta.InstancesRemoved, e.Delta.InstancesSet)
	case e.Heartbeat != nil:
		c.reached = e.Heartbeat.Revision
	}
	close(c.moved)
	c.moved = make(chan struct{})
	return nil
}

func (c *watcher) names(unmapped, mapped []policy.Route, gone []netip.Addr, come []api.Instance) {
	for _, r := range unmapped {
		delete(c.routes, r)
	}
	for _, r := range mapped {
		c.routes[r] = true
	}
	for _, a := range gone {
		delete(c.instances, a)
	}
	for _, i := range come {
		c.instances[i.Address] = i
	}
}

// hold makes the handler wait in its next event until release.
func (c *watcher) hold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gate = make(chan struct{})
}

func (c *watcher) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gate != nil {
		close(c.gate)
		c.gate = nil
	}
}

// until waits until cond, which is called with the lock held, holds.
func (c *watcher) until(what string, cond func() bool) {
	c.w.t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		c.mu.Lock()
		ok, moved, reached := cond(), c.moved, c.reached
		c.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-moved:
		case <-deadline:
			c.w.t.Fatalf("waited in vain until %s; it is at revision %d", what, reached)
		}
	}
}

// ask sends a request whose answer is a value of type T.
func ask[T any](w *world, method, path, token, body string) T {
	w.t.Helper()
	got := w.call(method, path, token, body)
	if got.Status != 200 || got.header.Get("Content-Type") != "application/json" {
		w.t.Fatalf("%s %s: %d %s %s", method, path, got.Status, got.header.Get("Content-Type"), got.Body)
	}
	return decoded[T](w.t, got.Body)
}

func decoded[T any](t *testing.T, body string) (v T) {
	t.Helper()
	if err := strict(body, &v); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	return v
}
