package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"tulle/cmd/tulle-bench/internal/bench"
	"tulle/cmd/tulle-bench/internal/netlab"
	"tulle/cmd/tulle-bench/internal/traffic"
)

// nobody is the user of everything in this scenario.
const nobody = 65534

// What containers without root have otherwise, and the address by which each
// reaches its host.
var userNetworks = []struct {
	name, pack string
	host       string
	args       func(pid int) []string
}{
	{"slirp4netns", "slirp4netns", "10.0.2.2", func(pid int) []string {
		return []string{"--configure", "--mtu=1500", "--disable-dns", strconv.Itoa(pid), "tap0"}
	}},
	{"pasta", "passt", "192.0.2.2", func(pid int) []string {
		return []string{"-f", "-q", "--config-net", "-m", "1500", "-t", "none", "-u", "none", "-T", "none", "-U", "none", strconv.Itoa(pid)}
	}},
}

func unprivileged() bench.Scenario {
	var metrics []bench.Metric
	for _, n := range userNetworks {
		metrics = append(metrics, bench.Metric{Name: "throughput-" + n.name, Unit: "Gbit/s",
			Peer: n.name + ", container to host", Bar: bench.RatioAtLeast(6)})
	}
	return bench.Scenario{
		Name:    "unprivileged",
		Summary: "one TCP stream, cells and containers of uid 65534, across cells on one host",
		Metrics: metrics,
		Run:     measureUnprivileged,
	}
}

func measureUnprivileged(ctx context.Context, run *bench.Run) (err error) {
	r := &rig{}
	defer func() { err = errors.Join(err, r.Close()) }()
	u, err := r.underlay(false)
	if err != nil {
		return err
	}
	host := u.Hosts[0] // the only one in use; pasta wants one with a way out
	if err := u.DefaultRoute(); err != nil {
		return err
	}
	dir, err := programs()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	restore, err := openTUN()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, restore()) }()
	n := &unprivilegedHost{host: host, self: filepath.Join(dir, filepath.Base(os.Args[0]))}
	ours, err := n.generator(ctx, nobodyRole)
	if err != nil {
		return err
	}
	r.keep(ours)
	server, err := n.generator(ctx, traffic.Arguments()[1])
	if err != nil {
		return err
	}
	r.keep(server)
	run.Note("MTU of the endpoints 1450, of the peers' 1500; TCP by the user's default of the host")
	d := length(run)
	mine := (&pair{client: ours}).throughput(d)
	for _, other := range userNetworks {
		metric := "throughput-" + other.name
		if !run.Wants(metric) {
			continue
		}
		if _, err := exec.LookPath(other.name); err != nil {
			run.LeaveOut(metric, "install Debian's package "+other.pack)
			continue
		}
		client, stop, err := n.container(ctx, other.name, other.args)
		if err != nil {
			return err
		}
		peer := &pair{client: client, to: netip.MustParseAddr(other.host)}
		_, err = client.Do(traffic.Order{Do: "reach", To: peer.to, Time: reachPatience})
		if err == nil {
			err = run.Pairs(ctx, metric, mine, peer.throughput(d))
		}
		if err := errors.Join(err, client.Close(), stop()); err != nil {
			return err
		}
	}
	return nil
}

// unprivilegedHost is where an ordinary user starts things.
type unprivilegedHost struct {
	host *netlab.Namespace
	self string // this program, where that user may start it
}

func asNobody(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent"}
}

// generator starts a role that answers as a generator does.
func (h *unprivilegedHost) generator(ctx context.Context, role string, args ...string) (*traffic.Generator, error) {
	cmd, err := bench.Play(ctx, role, args...)
	if err != nil {
		return nil, err
	}
	cmd.Path = h.self
	asNobody(cmd)
	return traffic.StartCommand(cmd, func(c *exec.Cmd) error { return h.host.Do(c.Start) })
}

// container starts a generator in a user and network namespace of its own, whose
// network is the program's.
func (h *unprivilegedHost) container(ctx context.Context, program string, args func(pid int) []string) (g *traffic.Generator, stop func() error, err error) {
	if g, err = h.generator(ctx, containerRole); err != nil {
		return nil, nil, err
	}
	pid, err := onlyChild(g.PID())
	if err != nil {
		return nil, nil, errors.Join(err, g.Close())
	}
	cmd := exec.CommandContext(ctx, program, args(pid)...)
	asNobody(cmd)
	if err := h.host.Do(cmd.Start); err != nil {
		return nil, nil, errors.Join(err, g.Close())
	}
	return g, func() error {
		// It may have ended with its namespace; either way it is gone then.
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil
	}, nil
}

// onlyChild finds the process that a process started.
func onlyChild(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err == nil && len(strings.Fields(string(b))) == 1 {
		return strconv.Atoi(strings.Fields(string(b))[0])
	}
	// The thread that started it may be another than the first.
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return 0, err
	}
	for _, t := range tasks {
		if b, err := os.ReadFile(t); err == nil && len(strings.Fields(string(b))) == 1 {
			return strconv.Atoi(strings.Fields(string(b))[0])
		}
	}
	return 0, fmt.Errorf("process %d has no child", pid)
}

// openTUN lets ordinary users open the TUN device, as udev's default has it.
func openTUN() (restore func() error, err error) {
	const device = "/dev/net/tun"
	info, err := os.Stat(device)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm() == 0o666 {
		return func() error { return nil }, nil
	}
	return func() error { return os.Chmod(device, info.Mode().Perm()) }, os.Chmod(device, 0o666)
}

// setUpPatience bounds how long the role below takes to set itself up.
const setUpPatience = 30 * time.Second
