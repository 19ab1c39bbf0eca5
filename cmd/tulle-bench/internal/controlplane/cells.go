package controlplane

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/ca"
	"tulle/policy/client"
)

// cellsRole plays many cells in one process: each has a credential, a lease,
// endpoints, a connection and a watch of its own, as a daemon has, and nothing
// behind them but a record of what it was told.
const cellsRole = "cells"

// placement says which cells there are and what they host.
type placement struct {
	Server    string // host:port of the internal API
	PKI       string // directory of the roots
	Cells     int
	Apps      int
	Instances int // of each app, each on another cell
}

// hosts lists the apps of each cell. App 0 is on all of them.
func (p placement) hosts() [][]policy.AppID {
	lists := make([][]policy.AppID, p.Cells)
	for c := range lists {
		lists[c] = append(lists[c], appID(0))
	}
	for a := 1; a < p.Apps; a++ {
		for i := range min(p.Instances, p.Cells) {
			// A stride that shares no factor with usual numbers of cells.
			c := (a + i*7919) % p.Cells
			lists[c] = append(lists[c], appID(a))
		}
	}
	return lists
}

// order is what the process that plays the cells is asked, report what it answers.
type order struct {
	Do       string // register, watch, reach, check
	Revision api.Revision
	Policies string // check: a file with the list of all
}

type report struct {
	Error        string
	Milliseconds float64      // that the order took
	Revision     api.Revision // the least in force on any
	Endpoints    int
	Reconnects   int
	Snapshots    int
	Wrong        []string // check: cells that have not exactly what concerns them
}

// runCells obeys orders until its input ends.
func runCells(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	if len(args) != 1 {
		return errors.New("give the placement, as JSON")
	}
	var p placement
	if err := json.Unmarshal([]byte(args[0]), &p); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	t, err := newTroop(p)
	if err != nil {
		return err
	}
	defer t.wait(stop)
	answers := json.NewEncoder(out)
	for orders := json.NewDecoder(in); ; {
		var o order
		if err := orders.Decode(&o); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		begun := time.Now()
		r, err := t.obey(ctx, o)
		r.Milliseconds = time.Since(begun).Seconds() * 1000
		if err != nil {
			r.Error = err.Error()
		}
		if err := answers.Encode(r); err != nil {
			return err
		}
	}
}

// troop are all cells of the process.
type troop struct {
	placement
	cells []*simulated
	watch sync.WaitGroup

	mu    sync.Mutex // guards moved
	moved chan struct{}
}

// simulated is one cell.
type simulated struct {
	t      *troop
	number int
	apps   []policy.AppID
	client *client.Client

	mu        sync.Mutex // guards what follows
	policies  map[api.Policy]struct{}
	revision  api.Revision
	snapshots int
}

func newTroop(p placement) (*troop, error) {
	roots, err := ca.Open(p.PKI)
	if err != nil {
		return nil, err
	}
	t := &troop{placement: p, moved: make(chan struct{})}
	for n, apps := range p.hosts() {
		name := fmt.Sprintf("cell-%d", n)
		credential, err := roots.Cells.IssueCell(name, []ca.Space{ca.AnySpace}, 0)
		if err != nil {
			return nil, err
		}
		pair, err := credential.TLS()
		if err != nil {
			return nil, err
		}
		cl, err := client.New(client.Options{
			Server: "https://" + p.Server, Cell: name,
			TLS: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots.Server.Pool(), Certificates: []tls.Certificate{pair}},
			// A busy machine is no dead server.
			RequestTimeout: time.Minute, Silence: time.Minute,
		})
		if err != nil {
			return nil, err
		}
		t.cells = append(t.cells, &simulated{t: t, number: n, apps: apps, client: cl, policies: map[api.Policy]struct{}{}})
	}
	return t, nil
}

// wait ends the watches.
func (t *troop) wait(stop context.CancelFunc) {
	stop()
	t.watch.Wait()
	for _, c := range t.cells {
		c.client.Close()
	}
}

func (t *troop) obey(ctx context.Context, o order) (report, error) {
	switch o.Do {
	case "register":
		return t.register(ctx)
	case "watch":
		for _, c := range t.cells {
			t.watch.Go(func() { _ = c.client.Watch(ctx, c.handle) }) // it ends with ctx
		}
		return t.reach(ctx, 1)
	case "reach":
		return t.reach(ctx, o.Revision)
	case "check":
		return t.check(o.Policies)
	}
	return report{}, fmt.Errorf("no order is %q", o.Do)
}

// atATime is how many cells register at once.
const atATime = 16

// register gives every cell its lease, then its endpoints.
func (t *troop) register(ctx context.Context) (report, error) {
	var r report
	leases := make([]api.Lease, len(t.cells))
	each := func(f func(context.Context, *simulated) error) error {
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(atATime)
		for _, c := range t.cells {
			g.Go(func() error { return f(ctx, c) })
		}
		return g.Wait()
	}
	err := each(func(ctx context.Context, c *simulated) (err error) {
		underlay := netip.AddrFrom4([4]byte{198, 18, byte(c.number >> 8), byte(c.number)})
		leases[c.number], err = c.client.Lease(ctx, api.LeaseRequest{Underlay: underlay, Port: 4789, Mode: api.ModeVXLAN})
		return err
	})
	if err != nil {
		return r, err
	}
	err = each(func(ctx context.Context, c *simulated) error {
		lease := leases[c.number]
		req := api.EndpointsRequest{Generation: lease.Generation, Sequence: 1}
		address := lease.Subnet.Addr()
		for i, app := range c.apps {
			address = address.Next()
			req.Endpoints = append(req.Endpoints, api.EndpointRegistration{
				Container: fmt.Sprintf("container-%d-%d", c.number, i), Address: address,
				App: api.AppRef{GUID: app}, Incarnation: uint64(i + 1)})
		}
		got, err := c.client.SetEndpoints(ctx, req)
		if err == nil && len(got.Refused) > 0 {
			err = fmt.Errorf("cell-%d: %d endpoints are refused, such as %v", c.number, len(got.Refused), got.Refused)
		}
		return err
	})
	for _, c := range t.cells {
		r.Endpoints += len(c.apps)
	}
	return r, err
}

// handle takes in what the cell is told.
func (c *simulated) handle(_ context.Context, e api.Event) error {
	c.mu.Lock()
	switch {
	case e.Snapshot != nil:
		clear(c.policies)
		for _, p := range e.Snapshot.Policies {
			c.policies[p] = struct{}{}
		}
		c.revision = e.Snapshot.Revision
		c.snapshots++
	case e.Delta != nil:
		for _, p := range e.Delta.PoliciesRemoved {
			delete(c.policies, p)
		}
		for _, p := range e.Delta.PoliciesAdded {
			c.policies[p] = struct{}{}
		}
		c.revision = e.Delta.Revision
	case e.Heartbeat != nil:
		c.revision = e.Heartbeat.Revision
	}
	c.mu.Unlock()
	c.t.mu.Lock()
	defer c.t.mu.Unlock()
	close(c.t.moved)
	c.t.moved = make(chan struct{})
	return nil
}

// reach waits until every cell has a watch open and a revision in force that is
// not below the one given.
func (t *troop) reach(ctx context.Context, least api.Revision) (report, error) {
	for {
		t.mu.Lock()
		moved := t.moved
		t.mu.Unlock()
		r := report{Revision: ^api.Revision(0)}
		behind := 0
		for _, c := range t.cells {
			status := c.client.Status()
			c.mu.Lock()
			r.Revision = min(r.Revision, c.revision)
			r.Snapshots += c.snapshots
			c.mu.Unlock()
			r.Reconnects += status.Reconnects
			if !status.Connected || status.Revision < least {
				behind++
			}
		}
		if behind == 0 {
			return r, nil
		}
		select {
		case <-moved:
			// One look for many events: looking costs as much as a thousand of them.
			time.Sleep(5 * time.Millisecond)
		case <-ctx.Done():
			return r, fmt.Errorf("%d cells are not at revision %d: %w", behind, least, ctx.Err())
		case <-time.After(time.Second): // a status changes after its event
		}
	}
}

// check holds what each cell has against the list of all policies.
func (t *troop) check(file string) (report, error) {
	body, err := os.ReadFile(file)
	if err != nil {
		return report{}, err
	}
	var all api.Policies
	if err := json.Unmarshal(body, &all); err != nil {
		return report{}, err
	}
	of := make(map[policy.AppID][]api.Policy)
	for _, p := range all.Policies {
		source, destination := p.Source.ID, p.Destination.ID
		of[source] = append(of[source], p)
		if destination != source {
			of[destination] = append(of[destination], p)
		}
	}
	var r report
	for _, c := range t.cells {
		want := make(map[api.Policy]struct{})
		for _, app := range c.apps {
			for _, p := range of[app] {
				p.Source.Tag, p.Destination.Tag = "", ""
				want[p] = struct{}{}
			}
		}
		if why := c.differs(want); why != "" {
			r.Wrong = append(r.Wrong, why)
		}
	}
	return r, nil
}

func (c *simulated) differs(want map[api.Policy]struct{}) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for p := range want {
		if _, ok := c.policies[p]; !ok {
			return fmt.Sprintf("cell-%d misses %+v", c.number, p)
		}
	}
	if len(want) != len(c.policies) {
		return fmt.Sprintf("cell-%d has %d policies, want %d", c.number, len(c.policies), len(want))
	}
	return ""
}
