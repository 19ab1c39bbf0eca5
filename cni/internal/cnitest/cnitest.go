// Package cnitest is a cell daemon's local API for the tests of the CNI plugin:
// the real server on a real socket, over a handler that keeps endpoints and
// devices as daemon and holder together do. Its own test drives the plugin with
// libcni.
package cnitest

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"tulle/overlay/control"
	"tulle/policy"
)

// Cell is one daemon. Tests change its fields in Set.
type Cell struct {
	Socket    string
	stop      func()
	mu        sync.Mutex
	Endpoints map[string]*Endpoint  // guarded by mu
	Refuse    error                 // guarded by mu
	Address   netip.Prefix          // guarded by mu: the next one given
	Address6  netip.Prefix          // guarded by mu: given to all; invalid: none
	MTU       int                   // guarded by mu
	Before    func()                // guarded by mu: called when an attach has come
	After     func()                // guarded by mu: called when the endpoint is there, before the answer
	InForce   bool                  // guarded by mu: what is said of rules that come later
	ports     []control.ListedPort  // guarded by mu
	rules     []policy.SecurityRule // guarded by mu
	seen      Seen                  // guarded by mu
	attaching sync.WaitGroup
}

// Endpoint is one attached container.
type Endpoint struct {
	control.Endpoint
	device int
}

// New starts a cell; it ends with the test.
func New(t *testing.T) *Cell {
	t.Helper()
	c := &Cell{Socket: filepath.Join(t.TempDir(), "celld.sock"), Endpoints: map[string]*Endpoint{},
		Address: netip.MustParsePrefix("10.255.7.3/32"), MTU: 1410}
	l, err := control.Listen(c.Socket, 0o600)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	s := &control.Server{Handler: c, Log: slog.New(slog.DiscardHandler),
		Authorizer: control.NewAuthorizer(uint32(os.Geteuid()), nil)}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	c.stop = sync.OnceFunc(func() {
		cancel()
		must(t, <-served)
		for name := range c.Endpoints {
			c.drop(name)
		}
	})
	t.Cleanup(c.stop)
	return c
}

// Attach implements control.Handler.
func (c *Cell) Attach(ctx context.Context, r control.AttachRequest) (control.Attached, error) {
	c.attaching.Add(1)
	defer c.attaching.Done()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen.Attaches = append(c.seen.Attaches, r.Attach)
	c.callLocked(c.Before)
	if ctx.Err() != nil {
		return control.Attached{}, control.Errorf(control.CodeUnavailable, "the caller has gone")
	}
	if c.Refuse != nil {
		return control.Attached{}, c.Refuse
	}
	if _, ok := c.Endpoints[r.Container]; ok {
		return control.Attached{}, control.Errorf(control.CodeExists, "container %s is attached already", r.Container)
	}
	raw, err := r.TUN.SyscallConn()
	if err != nil {
		return control.Attached{}, err
	}
	address := c.Address
	if r.Address.IsValid() {
		address = netip.PrefixFrom(r.Address, 32)
	}
	e := &Endpoint{Endpoint: control.Endpoint{Container: r.Container, Address: address.Addr(), Lifeline: r.Lifeline, Network: r.Network}}
	if err := raw.Control(func(fd uintptr) { e.device, _ = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return control.Attached{}, err
	}
	c.Endpoints[r.Container] = e
	c.callLocked(c.After)
	return control.Attached{Address: address, Address6: c.Address6, MTU: c.MTU, Resolver: netip.MustParseAddr("169.254.0.2"), App: "guid"}, nil
}

// Detach implements control.Handler.
func (c *Cell) Detach(_ context.Context, _ control.Peer, d control.Detach) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen.Detached = append(c.seen.Detached, d.Container)
	c.drop(d.Container)
	return nil
}

func (c *Cell) drop(name string) {
	if e, ok := c.Endpoints[name]; ok {
		_ = unix.Close(e.device)
		delete(c.Endpoints, name)
	}
}

// GC implements control.Handler; every endpoint is the one caller's.
func (c *Cell) GC(_ context.Context, _ control.Peer, g control.GC) (control.Collected, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var ended control.Collected
	for name, e := range c.Endpoints {
		if e.Network == g.Network && !slices.Contains(g.Keep, name) {
			ended.Containers = append(ended.Containers, name)
			c.drop(name)
		}
	}
	return ended, nil
}

// List implements control.Handler.
func (c *Cell) List(context.Context) ([]control.Endpoint, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []control.Endpoint
	for _, e := range c.Endpoints {
		all = append(all, e.Endpoint)
	}
	return all, nil
}

// Status implements control.Handler.
func (c *Cell) Status(context.Context) (control.Status, error) {
	return control.Status{Cell: "cell-a"}, nil
}

// Seen is what has been asked of a cell, and what it has.
type Seen struct {
	Rules      []policy.SecurityRule // added to containers
	Attaches   []control.Attach
	Detached   []string
	Containers []string // attached now, sorted
}

// Seen is a copy.
func (c *Cell) Seen() Seen {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Seen{slices.Clone(c.rules), slices.Clone(c.seen.Attaches), slices.Clone(c.seen.Detached), slices.Sorted(maps.Keys(c.Endpoints))}
}

// Settle returns when no attach is being worked on.
func (c *Cell) Settle() { c.attaching.Wait() }

// callLocked calls f, if there is one, without the lock.
func (c *Cell) callLocked(f func()) {
	if f != nil {
		c.mu.Unlock()
		defer c.mu.Lock()
		f()
	}
}

// Set changes the handler's behaviour between calls.
func (c *Cell) Set(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// AddPort implements control.Handler.
func (c *Cell) AddPort(_ context.Context, _ control.Peer, r control.PortAdd) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.ports {
		if p.HostPort == r.HostPort && p.Protocol == r.Protocol {
			return control.Errorf(control.CodePortTaken, "port %d is forwarded to container %s already", p.HostPort, p.Container)
		}
	}
	c.ports = append(c.ports, control.ListedPort{Port: r.Port, Container: r.Container})
	return nil
}

// RemovePort implements control.Handler.
func (c *Cell) RemovePort(_ context.Context, _ control.Peer, r control.PortRemove) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ports = slices.DeleteFunc(c.ports, func(p control.ListedPort) bool {
		return p.Container == r.Container && p.HostPort == r.HostPort && p.Protocol == r.Protocol
	})
	return nil
}

// Ports implements control.Handler.
func (c *Cell) Ports(context.Context) ([]control.ListedPort, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.ports), nil
}

// TrafficLog implements control.Handler; nothing is written down here.
func (c *Cell) TrafficLog(context.Context, control.Peer, control.TrafficLogSet) (control.TrafficLog, error) {
	return control.TrafficLog{}, nil
}

// AddRules implements control.Handler.
func (c *Cell) AddRules(_ context.Context, _ control.Peer, r control.RulesAdd) (control.RulesAdded, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.Endpoints[r.Container]; !ok {
		return control.RulesAdded{}, control.Errorf(control.CodeNotFound, "container %s is not attached to this cell", r.Container)
	}
	c.rules = append(c.rules, r.Rules...)
	return control.RulesAdded{InForce: c.InForce}, nil
}

// NATWho implements control.Handler; nothing ever left this cell.
func (c *Cell) NATWho(context.Context, control.NATWho) ([]control.NATFound, error) { return nil, nil }
