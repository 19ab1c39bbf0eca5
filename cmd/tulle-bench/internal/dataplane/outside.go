package dataplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"tulle/cmd/tulle-bench/internal/bench"
	"tulle/cmd/tulle-bench/internal/netlab"
	"tulle/cmd/tulle-bench/internal/traffic"
	"tulle/overlay/control"
	"tulle/policy"
	"tulle/policy/api"
)

// idleConnections are open, and silent, when memory is measured.
const idleConnections = 10_000

const idleRole = "idle"

// idlePort is where the other host accepts connections and leaves them alone.
const idlePort = traffic.Port + 1

func egress() bench.Scenario {
	return bench.Scenario{
		Name:    "egress",
		Summary: "a container to a server on another host, all of uid 65534, beside what rootless containers have otherwise",
		Metrics: []bench.Metric{
			{Name: "throughput-1500", Unit: "Gbit/s", Peer: "slirp4netns, MTU 1500", Bar: bench.RatioAtLeast(4)},
			{Name: "throughput", Unit: "Gbit/s", Peer: "the faster of slirp4netns and pasta, MTU 65520", Bar: bench.RatioAtLeast(1)},
			{Name: "crr", Unit: "1/s", Peer: "slirp4netns, MTU 1500", Bar: bench.RatioAtLeast(1)},
			{Name: "idle", Unit: "MiB", Bar: bench.AtMost(200)},
		},
		Run: measureEgress,
	}
}

func forward() bench.Scenario {
	return bench.Scenario{
		Name:    "forward",
		Summary: "another host to a container through a port of its host, client address kept, beside slirp4netns' port driver",
		Metrics: []bench.Metric{{Name: "throughput", Unit: "Gbit/s", Peer: "slirp4netns' port driver, MTU 65520", Bar: bench.RatioAtLeast(1)}},
		Run:     measureForward,
	}
}

// outsider is a host with a container of Tulle's and, beside it, containers of others,
// and a server on the other host.
type outsider struct {
	rig
	u      *netlab.Underlay
	t      *tulle
	ns     *netlab.Namespace // of the container
	addr   netip.Addr
	client *traffic.Generator // in the container
	server *traffic.Generator // on the other host
	others *unprivilegedHost
}

func newOutsider(ctx context.Context) (o *outsider, err error) {
	o = &outsider{}
	defer func() {
		if err != nil {
			err = errors.Join(err, o.Close())
		}
	}()
	if o.u, err = o.underlay(false); err != nil {
		return o, err
	}
	if err = errors.Join(o.u.DefaultRoute(), o.u.NoTimeWait()); err != nil {
		return o, err
	}
	restore, err := openTUN()
	if err != nil {
		return o, err
	}
	o.keep(closer(restore))
	if o.t, err = newTulle(ctx, o.u, 1, api.ModeVXLAN); err != nil {
		return o, err
	}
	o.keep(o.t)
	var got control.Attached
	if o.ns, got, err = o.t.attach(ctx, o.t.cells[0], clientApp); err != nil {
		return o, err
	}
	o.addr = got.Address.Addr()
	self := filepath.Join(o.t.programs, filepath.Base(os.Args[0]))
	o.others = &unprivilegedHost{host: o.u.Hosts[0], self: self}
	if o.client, err = (&unprivilegedHost{host: o.ns, self: self}).generator(ctx, traffic.Arguments()[1]); err != nil {
		return o, err
	}
	o.keep(o.client)
	if o.server, err = (&unprivilegedHost{host: o.u.Hosts[1], self: self}).generator(ctx, traffic.Arguments()[1]); err != nil {
		return o, err
	}
	o.keep(o.server)
	return o, o.t.api.PutGroup(ctx, policy.SecurityGroup{GUID: "bench", Name: "bench", RunningDefault: true,
		Rules: []policy.SecurityRule{{Protocol: "tcp", Destination: o.u.Addrs[1].String(), Ports: "1-65535"}}})
}

// userNetwork starts a container over slirp4netns or pasta, with an MTU.
func (o *outsider) userNetwork(ctx context.Context, name string, mtu int, more ...string) (*pair, error) {
	if _, err := exec.LookPath(name); err != nil {
		return nil, nil
	}
	args := func(pid int) []string {
		if name == "pasta" {
			return []string{"-f", "-q", "--config-net", "--no-map-gw", "-m", strconv.Itoa(mtu), "-t", "none", "-u", "none", "-T", "none", "-U", "none", strconv.Itoa(pid)}
		}
		return append([]string{"--configure", "--mtu=" + strconv.Itoa(mtu), "--disable-dns"}, append(more, strconv.Itoa(pid), "tap0")...)
	}
	client, stop, err := o.others.container(ctx, name, args)
	if err != nil {
		return nil, err
	}
	o.keep(closer(stop))
	o.keep(client)
	return &pair{client: client, to: o.u.Addrs[1]}, nil
}

func (p *pair) reached() error {
	_, err := p.client.Do(traffic.Order{Do: "reach", To: p.to, Time: reachPatience})
	return err
}

func measureEgress(ctx context.Context, run *bench.Run) (err error) {
	o, err := newOutsider(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	run.Note("MTU of our container 1450; TCP by %s; no TIME-WAIT on the host", traffic.Congestion())
	ours := &pair{client: o.client, to: o.u.Addrs[1]}
	if err := ours.reached(); err != nil {
		return err
	}
	d := length(run)
	if run.Wants("throughput-1500", "crr") {
		slirp, err := o.userNetwork(ctx, "slirp4netns", 1500)
		switch {
		case err != nil:
			return err
		case slirp == nil:
			run.LeaveOut("throughput-1500", "install Debian's package slirp4netns")
			run.LeaveOut("crr", "install Debian's package slirp4netns")
		default:
			if err := slirp.reached(); err != nil {
				return err
			}
			if err := run.Pairs(ctx, "throughput-1500", ours.throughput(d), slirp.throughput(d)); err != nil {
				return err
			}
			if err := run.Pairs(ctx, "crr", ours.connections(d), slirp.connections(d)); err != nil {
				return err
			}
		}
	}
	if run.Wants("throughput") {
		if err := o.besideTheFaster(ctx, run, ours, d); err != nil {
			return err
		}
	}
	if run.Wants("idle") {
		return o.idle(ctx, run)
	}
	return nil
}

// besideTheFaster measures one stream beside the better of the two at their longest MTU.
func (o *outsider) besideTheFaster(ctx context.Context, run *bench.Run, ours *pair, d time.Duration) error {
	var peers []*pair
	for _, name := range []string{"slirp4netns", "pasta"} {
		p, err := o.userNetwork(ctx, name, 65520)
		if err != nil {
			return err
		}
		if p == nil {
			run.LeaveOut("throughput", "install Debian's packages slirp4netns and passt")
			return nil
		}
		if err := p.reached(); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		peers = append(peers, p)
	}
	return run.Pairs(ctx, "throughput", ours.throughput(d), func(ctx context.Context) (float64, error) {
		best := 0.0
		for _, p := range peers {
			v, err := p.throughput(d)(ctx)
			if err != nil {
				return 0, err
			}
			best = max(best, v)
		}
		return best, nil
	})
}

// idle measures the daemon's peak memory with connections that say nothing.
func (o *outsider) idle(ctx context.Context, run *bench.Run) error {
	cmd, err := bench.Play(ctx, idleRole)
	if err != nil {
		return err
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := o.u.Hosts[1].Do(cmd.Start); err != nil {
		return err
	}
	defer func() {
		_ = in.Close()
		_ = cmd.Wait()
	}()
	if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
		return fmt.Errorf("the accepting host did not begin: %w", err)
	}
	n := run.Count(idleConnections)
	conns := make([]net.Conn, 0, n)
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	to := netip.AddrPortFrom(o.u.Addrs[1], idlePort).String()
	err = o.ns.Do(func() error {
		for range n {
			c, err := net.DialTimeout("tcp4", to, reachPatience)
			if err != nil {
				return fmt.Errorf("connection %d of %d: %w", len(conns)+1, n, err)
			}
			conns = append(conns, c)
		}
		return nil
	})
	if err != nil {
		return err
	}
	run.Note("%d connections are open", len(conns))
	return run.Alone(ctx, "idle", func(context.Context) (float64, error) { return peak(o.t.cells[0].PID()) })
}

// beIdle accepts and leaves alone, until its input ends.
func beIdle(_ context.Context, _ []string, in io.Reader, out io.Writer) error {
	l, err := net.Listen("tcp4", ":"+strconv.Itoa(idlePort))
	if err != nil {
		return err
	}
	defer l.Close()
	go func() {
		var held []net.Conn
		defer func() {
			for _, c := range held {
				_ = c.Close()
			}
		}()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			held = append(held, c)
		}
	}()
	if _, err := out.Write([]byte{'\n'}); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, in)
	return err
}

func measureForward(ctx context.Context, run *bench.Run) (err error) {
	ours, err := newOutsider(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ours.Close()) }()
	if _, err := exec.LookPath("slirp4netns"); err != nil {
		run.LeaveOut("throughput", "install Debian's package slirp4netns")
		return nil
	}
	theirs, err := newOutsider(ctx) // a host of its own: both want the same port
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, theirs.Close()) }()
	c, err := control.Dial(ours.t.cells[0].Socket)
	if err != nil {
		return err
	}
	defer c.Close()
	port := control.Port{HostIP: ours.u.Addrs[0], HostPort: traffic.Port, Port: traffic.Port}
	if err := c.AddPort(ctx, control.PortAdd{Container: ours.t.attached[0].ID, Port: port}); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "tulle-bench-slirp-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.Chmod(dir, 0o777); err != nil {
		return err
	}
	socket := filepath.Join(dir, "api")
	if _, err := theirs.userNetwork(ctx, "slirp4netns", 65520, "--api-socket="+socket); err != nil {
		return err
	}
	if err := hostForward(ctx, socket, traffic.Port); err != nil {
		return err
	}
	mine, other := &pair{client: ours.server, to: ours.u.Addrs[0]}, &pair{client: theirs.server, to: theirs.u.Addrs[0]}
	if err := errors.Join(mine.reached(), other.reached()); err != nil {
		return err
	}
	d := length(run)
	run.Note("MTU of our container 1450, of the peer's 65520")
	return run.Pairs(ctx, "throughput", mine.throughput(d), other.throughput(d))
}

// hostForward has slirp4netns lead a port of its host to the same one of its container.
func hostForward(ctx context.Context, socket string, port int) error {
	ctx, cancel := context.WithTimeout(ctx, reachPatience)
	defer cancel()
	for {
		err := askSlirp(socket, port)
		if err == nil {
			return nil
		}
		if perr := pause(ctx); perr != nil {
			return errors.Join(err, perr)
		}
	}
}

func askSlirp(socket string, port int) error {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	defer c.Close()
	order := map[string]any{"execute": "add_hostfwd", "arguments": map[string]any{
		"proto": "tcp", "host_addr": "0.0.0.0", "host_port": port, "guest_addr": "10.0.2.100", "guest_port": port}}
	if err := json.NewEncoder(c).Encode(order); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	var answer struct {
		Error *struct {
			Desc string `json:"desc"`
		} `json:"error"`
	}
	if err := json.NewDecoder(c).Decode(&answer); err != nil {
		return err
	}
	if answer.Error != nil {
		return fmt.Errorf("slirp4netns: %s", answer.Error.Desc)
	}
	return nil
}
