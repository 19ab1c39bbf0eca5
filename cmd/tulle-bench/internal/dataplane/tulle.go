package dataplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"tulle/cmd/internal/demo"
	"tulle/cmd/tulle-bench/internal/netlab"
	"tulle/cni/attach"
	"tulle/overlay/control"
	"tulle/policy"
	"tulle/policy/api"
)

// The apps of the two containers that are measured.
const (
	clientApp = "client"
	serverApp = "server"
)

// tulle is a policy server and a cell on each host of an underlay.
type tulle struct {
	*netlab.Underlay
	programs   string // directory
	world      *demo.World
	api        *demo.API
	cells      []*demo.Cell
	containers []*netlab.Namespace
	attached   []attach.Container
	policies   int // to the server's app
	peers, far int // other cells that are nowhere; of these and those left out
	mtu        int
}

// newTulle starts cells, one or two, in a tunnel mode. The underlay stays the caller's.
func newTulle(ctx context.Context, u *netlab.Underlay, cells int, mode api.TunnelMode) (t *tulle, err error) {
	t = &tulle{Underlay: u}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Close())
		}
	}()
	if t.programs, err = programs(); err != nil {
		return t, err
	}
	if t.world, err = demo.NewWorld(demo.Options{Mode: string(mode), BinDir: t.programs}); err != nil {
		return t, err
	}
	t.world.In(u.Hosts[0].File())
	at := u.Addrs[0].String()
	if _, err = t.world.StartServer(ctx, "external: "+at+":0", "internal: "+at+":0", "hosts: ["+at+"]", "log_level: warn"); err != nil {
		return t, err
	}
	if t.api, err = t.world.Client(); err != nil {
		return t, err
	}
	for i := range cells {
		t.world.In(u.Hosts[i].File())
		cell, err := t.world.StartCell(ctx, fmt.Sprintf("cell-%d", i+1), u.Addrs[i], demo.Port4789, demo.Port51820)
		if err != nil {
			return t, err
		}
		t.cells = append(t.cells, cell)
	}
	return t, nil
}

// Close ends the containers, the cells and the server.
func (t *tulle) Close() error {
	var errs []error
	// A container without a process to live by stays with the holder otherwise.
	for _, c := range t.attached {
		errs = append(errs, attach.Undo(context.Background(), c))
	}
	if t.world != nil {
		errs = append(errs, t.world.Close())
	}
	for _, c := range t.containers {
		errs = append(errs, c.Close())
	}
	if t.programs != "" {
		errs = append(errs, os.RemoveAll(t.programs))
	}
	return errors.Join(errs...)
}

// programs gives a world's programs a directory of their own: a world that ends
// takes away what still runs from its directory, and there may be two.
func programs() (dir string, err error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	if dir, err = os.MkdirTemp("", "tulle-bench-"); err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	// Others than root start them too.
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	for _, b := range append([]string{filepath.Base(self)}, demo.Binaries...) {
		from, to := filepath.Join(filepath.Dir(self), b), filepath.Join(dir, b)
		if os.Link(from, to) == nil { // on one file system
			continue
		}
		text, err := os.ReadFile(from)
		if err != nil {
			return "", fmt.Errorf("find the program %s (make build puts it into bin/): %w", b, err)
		}
		if err := os.WriteFile(to, text, 0o755); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// attach makes a container as a CNI plugin does.
func (t *tulle) attach(ctx context.Context, cell *demo.Cell, app string) (*netlab.Namespace, control.Attached, error) {
	ns, err := netlab.New()
	if err != nil {
		return nil, control.Attached{}, err
	}
	t.containers = append(t.containers, ns)
	c := attach.Container{ID: fmt.Sprintf("%s-%d", app, len(t.containers)), Device: attach.UsualDevice, Netns: ns.Path(), Socket: cell.Socket}
	got, err := attach.Add(ctx, c, attach.Wish{App: api.AppRef{Name: app, Space: demo.Space, Org: demo.Org}})
	if err == nil {
		t.attached = append(t.attached, c)
	}
	return ns, got, err
}

// pair attaches the client to the first cell and the server to the last, with a
// policy between them, and starts a generator in each.
func (t *tulle) pair(ctx context.Context) (*pair, error) {
	client, one, err := t.attach(ctx, t.cells[0], clientApp)
	if err != nil {
		return nil, err
	}
	server, two, err := t.attach(ctx, t.cells[len(t.cells)-1], serverApp)
	if err != nil {
		return nil, err
	}
	t.mtu = one.MTU
	for _, protocol := range []policy.Protocol{policy.TCP, policy.UDP} {
		if err := t.api.Create(ctx, policy.Policy{Source: one.App, Destination: two.App, Protocol: protocol, Ports: ports}); err != nil {
			return nil, err
		}
	}
	t.policies = 1
	return newPair(ctx, client, server, two.Address.Addr())
}

var ports = policy.PortRange{Start: netlab.FirstPort, End: netlab.LastPort}

// allow adds policies to the server's app, from apps that are nowhere, until
// there are n. Which one matches makes no difference here.
func (t *tulle) allow(ctx context.Context, n int) error {
	const atOnce = 5000
	destination, err := t.api.AppID(ctx, serverApp)
	if err != nil {
		return err
	}
	for t.policies < n {
		var ps []policy.Policy
		for ; t.policies < n && len(ps) < atOnce; t.policies++ {
			ps = append(ps, policy.Policy{Source: policy.AppID(fmt.Sprintf("elsewhere-%d", t.policies)), Destination: destination,
				Protocol: policy.TCP, Ports: ports})
		}
		if err := t.api.Create(ctx, ps...); err != nil {
			return err
		}
	}
	return t.caughtUp(ctx, n)
}

// caughtUp waits until the server's cell has so many policies.
func (t *tulle) caughtUp(ctx context.Context, n int) error {
	for {
		s, err := t.cells[len(t.cells)-1].Status(ctx)
		if err != nil {
			return err
		}
		if s.Policies >= n {
			return nil
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}
