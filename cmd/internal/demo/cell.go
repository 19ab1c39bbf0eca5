package demo

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"tulle/overlay/control"
)

// Cell is one cell daemon.
type Cell struct {
	Name     string
	Underlay netip.Addr
	Socket   string // of its local API
	Metrics  string // host:port

	world   *World
	config  string
	state   string
	netns   *os.File
	process *process
}

type cellReady struct {
	Metrics  string `json:"metrics"`
	Underlay string `json:"underlay"`
}

// Port4789 is the setting for VXLAN's own port, which kernel cells speak; a cell
// takes a free one otherwise.
const Port4789 = "port: 4789"

// Port51820 is the same for WireGuard's.
const Port51820 = "wireguard: 51820"

// StartCell issues the cell's credentials and starts its daemon on a free
// port of the underlay address. Settings are further lines of its configuration.
func (w *World) StartCell(ctx context.Context, name string, underlay netip.Addr, settings ...string) (*Cell, error) {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	dir, err := w.ownDir(name)
	if err != nil {
		return nil, err
	}
	state, err := w.ownDir(filepath.Join(name, "state"))
	if err != nil {
		return nil, err
	}
	c := &Cell{Name: name, Underlay: underlay, Socket: filepath.Join(dir, "celld.sock"), world: w,
		config: filepath.Join(dir, "config.yaml"), state: state, netns: w.netns}
	credentials := filepath.Join(dir, "credentials")
	if err := w.runTool(ctx, "issue-"+name, "issue-cell", name, "--dir", w.Server.dir, "--spaces", "*", "--out", credentials); err != nil {
		return nil, fmt.Errorf("issue the credentials of %s: %w", name, err)
	}
	lines := append([]string{
		"name: " + name,
		"server: https://" + w.Server.Internal,
		"credentials: " + credentials,
		"state_dir: " + state,
		"socket: " + c.Socket,
		"underlay: " + underlay.String(),
		"metrics: 127.0.0.1:0",
	}, settings...)
	if !slices.ContainsFunc(settings, func(s string) bool { return strings.HasPrefix(s, "mode:") }) {
		lines = append(lines, "mode: "+w.mode)
	}
	if !slices.Contains(settings, Port4789) {
		lines = append(lines, "port: 0")
	}
	if !slices.Contains(settings, Port51820) {
		lines = append(lines, "wireguard: 0")
	}
	if err := os.WriteFile(c.config, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		return nil, err
	}
	if err := c.start(ctx); err != nil {
		return nil, err
	}
	w.cells = append(w.cells, c)
	return c, nil
}

func (c *Cell) start(ctx context.Context) error {
	p, err := c.world.start(program{name: c.Name, path: c.world.program("tulle-celld"),
		args: []string{"--config", c.config}, daemon: true, netns: c.netns})
	if err != nil {
		return err
	}
	var r cellReady
	if err := p.awaitReady(ctx, &r); err != nil {
		return err
	}
	c.process, c.Metrics = p, r.Metrics
	return nil
}

// Kill ends the daemon with SIGKILL.
func (c *Cell) Kill() error { return c.process.kill() }

// Restart starts a daemon that has ended, with the state it left.
func (c *Cell) Restart(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	return c.start(ctx)
}

// Stop ends the daemon in order.
func (c *Cell) Stop() error { return c.process.terminate(c.world.patience) }

// PID is the daemon's process.
func (c *Cell) PID() int { return c.process.pid() }

// Log is the file with what the daemon logged.
func (c *Cell) Log() string { return c.process.log }

// Status asks the daemon for its state.
func (c *Cell) Status(ctx context.Context) (control.Status, error) {
	client, err := control.Dial(c.Socket)
	if err != nil {
		return control.Status{}, err
	}
	defer client.Close()
	return client.Status(ctx)
}
