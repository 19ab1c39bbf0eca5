package client_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/ca"
	"tulle/policy/client"
	"tulle/policy/hub"
	"tulle/policy/server"
	"tulle/policy/store"
	"tulle/policy/store/sqlite"
)

const patience = 20 * time.Second

// rig is a real policy server on a real socket and database, that can be
// stopped and started again at the same address.
type rig struct {
	*testing.T
	dir   string
	roots *ca.Roots
	addr  string
	certs func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	opt   server.InternalOptions

	store    store.Store
	internal *server.Internal
	stop     func()

	cells uint16 // made so far

	mu    sync.Mutex // guards conns
	conns int        // accepted so far
}

func newRig(t *testing.T, h hub.Options) *rig {
	t.Helper()
	dir := t.TempDir()
	roots, err := ca.Create(filepath.Join(dir, "pki"))
	if err != nil {
		t.Fatal(err)
	}
	certs, err := roots.Server.Certificates([]string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{T: t, dir: dir, roots: roots, certs: certs, addr: "127.0.0.1:0"}
	r.opt.Hub = h
	r.start()
	t.Cleanup(func() { r.stop() })
	return r
}

func (r *rig) database() string { return filepath.Join(r.dir, "tulle.db") }

func (r *rig) start() {
	r.Helper()
	s, err := sqlite.Open(r.Context(), r.database(), sqlite.Options{Lease: store.LeaseConfig{
		Network: netip.MustParsePrefix("10.255.0.0/16"), Bits: 24, Lifetime: time.Hour,
	}})
	if err != nil {
		r.Fatal(err)
	}
	in, err := server.NewInternal(r.Context(), s, r.opt)
	if err != nil {
		r.Fatal(err)
	}
	l, err := net.Listen("tcp", r.addr)
	if err != nil {
		r.Fatal(err)
	}
	r.addr = l.Addr().String()
	srv := server.InternalServer(in, ca.ServerTLS(r.roots.Cells, r.certs), slog.New(slog.DiscardHandler))
	srv.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			r.mu.Lock()
			r.conns++
			r.mu.Unlock()
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { srv.ServeTLS(l, "", "") })
	wg.Go(func() { in.Run(ctx) })
	r.store, r.internal = s, in
	r.stop = sync.OnceFunc(func() {
		cancel()
		srv.Close()
		wg.Wait()
		if err := s.Close(); err != nil {
			r.Errorf("close store: %v", err)
		}
	})
}

func (r *rig) allow(src, dst policy.AppID, port uint16) api.Revision {
	r.Helper()
	rev, err := r.store.AddPolicies(r.Context(), []policy.Policy{tcp(src, dst, port)})
	if err != nil {
		r.Fatal(err)
	}
	return rev
}

func (r *rig) deny(src, dst policy.AppID, port uint16) api.Revision {
	r.Helper()
	rev, err := r.store.RemovePolicies(r.Context(), []policy.Policy{tcp(src, dst, port)})
	if err != nil {
		r.Fatal(err)
	}
	return rev
}

func tcp(src, dst policy.AppID, port uint16) policy.Policy {
	return policy.Policy{Source: src, Destination: dst, Protocol: policy.TCP, Ports: policy.PortRange{Start: port, End: port}}
}

// cell is a cell daemon as far as the control plane sees one.
type cell struct {
	*rig
	*client.Client
	name     string
	lease    api.Lease
	sequence uint64

	mu        sync.Mutex // guards what follows
	moved     chan struct{}
	gate      chan struct{} // the handler waits for it to close; nil: goes on
	fail      error         // the handler's answer to the next event
	policies  map[api.Policy]bool
	tags      map[policy.AppID]policy.Tag
	endpoints map[api.EndpointKey]api.Endpoint
	peers     map[string]api.Peer
	revision  api.Revision
	floor     api.Revision
	epoch     api.Epoch
	at        time.Time // when revision was reached
	snapshots int
	deltas    int
}

// cell makes a cell with a lease and an open watch.
func (r *rig) cell(name string, opt client.Options) *cell {
	r.Helper()
	dir := filepath.Join(r.dir, name)
	if _, err := os.Stat(dir); err != nil {
		cred, err := r.roots.Cells.IssueCell(name, []ca.Space{ca.AnySpace}, 0)
		if err != nil {
			r.Fatal(err)
		}
		if err := ca.WriteCell(dir, cred, r.roots.Server); err != nil {
			r.Fatal(err)
		}
	}
	r.cells++
	opt.Server, opt.Credentials = "https://"+r.addr, dir
	opt.BackoffMin, opt.BackoffMax = 5*time.Millisecond, 50*time.Millisecond
	cl, err := client.New(opt)
	if err != nil {
		r.Fatal(err)
	}
	c := &cell{rig: r, Client: cl, name: name, moved: make(chan struct{})}
	c.lease, err = cl.Lease(r.Context(), api.LeaseRequest{Underlay: netip.MustParseAddr("127.0.0.1"), Port: 40000 + r.cells, Mode: api.ModeVXLAN})
	if err != nil {
		r.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- cl.Watch(ctx, c.handle) }()
	r.Cleanup(func() {
		c.release()
		cancel()
		if err := <-done; err != context.Canceled {
			r.Errorf("watch of %s ended with %v", name, err)
		}
		cl.Close()
	})
	c.until("is connected", func() bool { return c.snapshots > 0 })
	return c
}

func (c *cell) handle(_ context.Context, e api.Event) error {
	c.mu.Lock()
	gate := c.gate
	c.mu.Unlock()
	if gate != nil {
		<-gate
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.fail; err != nil {
		c.fail = nil
		return err
	}
	switch {
	case e.Snapshot != nil:
		s := e.Snapshot
		c.policies, c.tags = map[api.Policy]bool{}, map[policy.AppID]policy.Tag{}
		c.endpoints, c.peers = map[api.EndpointKey]api.Endpoint{}, map[string]api.Peer{}
		c.add(s.Policies, s.Tags, s.Endpoints, s.Peers)
		c.epoch, c.revision, c.floor = s.Epoch, s.Revision, s.Floor
		c.snapshots++
	case e.Delta != nil:
		d := e.Delta
		for _, p := range d.PoliciesRemoved {
			delete(c.policies, p)
		}
		for _, a := range d.TagsRemoved {
			delete(c.tags, a)
		}
		for _, k := range d.EndpointsRemoved {
			delete(c.endpoints, k)
		}
		for _, p := range d.PeersRemoved {
			delete(c.peers, p)
		}
		c.add(d.PoliciesAdded, d.TagsSet, d.EndpointsSet, d.PeersSet)
		c.revision, c.floor = d.Revision, d.Floor
		c.deltas++
	case e.Heartbeat != nil:
		c.revision, c.floor = e.Heartbeat.Revision, e.Heartbeat.Floor
	}
	c.at = time.Now()
	close(c.moved)
	c.moved = make(chan struct{})
	return nil
}

func (c *cell) add(ps []api.Policy, ts []api.AppTag, es []api.Endpoint, peers []api.Peer) {
	for _, p := range ps {
		c.policies[p] = true
	}
	for _, t := range ts {
		c.tags[t.App] = t.Tag
	}
	for _, e := range es {
		c.endpoints[api.EndpointKey{Cell: e.Cell, Container: e.Container, Address: e.Address, Generation: e.Generation, Incarnation: e.Incarnation}] = e
	}
	for _, p := range peers {
		c.peers[p.Name] = p
	}
}

// hold makes the handler wait in its next event until release.
func (c *cell) hold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gate = make(chan struct{})
}

func (c *cell) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gate != nil {
		close(c.gate)
		c.gate = nil
	}
}

// until waits until cond, which is called with the lock held, holds.
func (c *cell) until(what string, cond func() bool) {
	c.Helper()
	deadline := time.After(patience)
	for {
		c.mu.Lock()
		ok, moved := cond(), c.moved
		state := fmt.Sprintf("revision %d floor %d policies %v tags %v endpoints %v peers %v",
			c.revision, c.floor, c.policies, c.tags, c.endpoints, c.peers)
		c.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-moved:
		case <-deadline:
			c.Fatalf("%s: waited %s until it %s; it has %s", c.name, patience, what, state)
		}
	}
}

// reach waits for a revision.
func (c *cell) reach(rev api.Revision) {
	c.Helper()
	c.until(fmt.Sprintf("reaches revision %d", rev), func() bool { return c.revision >= rev })
}

// runs registers one container of each app, in place of all before, and waits
// until the list is in force on the cell's own stream.
func (c *cell) runs(apps ...policy.AppID) api.Revision {
	c.Helper()
	c.sequence++
	req := api.EndpointsRequest{Generation: c.lease.Generation, Sequence: c.sequence}
	addr := c.lease.Subnet.Addr()
	for i, app := range apps {
		addr = addr.Next()
		req.Endpoints = append(req.Endpoints, api.EndpointRegistration{
			Container: fmt.Sprintf("%s-%d", app, i), Address: addr, App: api.AppRef{GUID: app}, Incarnation: c.sequence<<8 + uint64(i),
		})
	}
	answer, err := c.SetEndpoints(c.rig.Context(), req)
	if err != nil {
		c.Fatal(err)
	}
	if len(answer.Refused) > 0 {
		c.Fatalf("refused: %v", answer.Refused)
	}
	c.reach(answer.Revision)
	return answer.Revision
}

// knows reports whether the cell sees an endpoint of the app elsewhere.
func (c *cell) knows(app policy.AppID) bool {
	for _, e := range c.endpoints {
		if e.App == app {
			return true
		}
	}
	return false
}
