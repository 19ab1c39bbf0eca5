package dataplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"tulle/cmd/tulle-bench/internal/bench"
	"tulle/cmd/tulle-bench/internal/netlab"
	"tulle/policy"
	"tulle/policy/api"
)

const (
	dnsNames     = 1000 // that are asked for, one after the other
	dnsManyNames = 100_000
	dnsWindow    = 32 // questions that are under way at once
	dnsHalf      = 2  // a part of the rate at which latency is measured
)

func names() bench.Scenario {
	const dnsmasq = "dnsmasq behind a veth, the same names in a hosts file"
	return bench.Scenario{
		Name:    "dns",
		Summary: "internal names asked by a container of its cell's resolver, 32 questions under way",
		Metrics: []bench.Metric{
			{Name: "rate", Unit: "1/s", Peer: dnsmasq, Bar: bench.RatioAtLeast(1)},
			{Name: "p99-half-load", Unit: "ms", Peer: dnsmasq, Bar: bench.AtMost(2)},
			{Name: "memory-100k", Unit: "MiB", Bar: bench.AtMost(100), Long: true},
		},
		Run: measureNames,
	}
}

func measureNames(ctx context.Context, run *bench.Run) (err error) {
	r := &rig{}
	defer func() { err = errors.Join(err, r.Close()) }()
	// The app is on another cell: a container that has a busy neighbour is held to a
	// rate (datapath's pace), and its neighbour's start counts as business.
	if err := r.setOurs(ctx, false, 2, api.ModeVXLAN); err != nil {
		return err
	}
	app, err := r.tulle.api.AppID(ctx, serverApp)
	if err != nil {
		return err
	}
	if run.Wants("rate", "p99-half-load") {
		if err := r.tulle.mapNames(ctx, app, dnsNames); err != nil {
			return err
		}
		if err := r.askBoth(ctx, run); err != nil {
			return err
		}
	}
	return r.manyNames(ctx, run, app)
}

// askBoth measures ours and dnsmasq.
func (r *rig) askBoth(ctx context.Context, run *bench.Run) error {
	peer, err := r.setDnsmasq(ctx)
	if err != nil {
		return err
	}
	ours, err := startDNSLoad(ctx, r.tulle.containers[0], netip.MustParseAddrPort("169.254.0.2:53"))
	if err != nil {
		return err
	}
	r.keep(ours)
	d := length(run)
	var fastest float64 // of ours, for half of it
	rate := func(l *dnsLoad) bench.Measure {
		return func(context.Context) (float64, error) {
			got, err := l.ask(dnsOrder{Time: d, Window: dnsWindow})
			if l == ours {
				fastest = max(fastest, got.Rate)
			}
			return got.Rate, err
		}
	}
	if err := run.Pairs(ctx, "rate", rate(ours), rate(peer)); err != nil {
		return err
	}
	if fastest == 0 { // not asked for
		if _, err := rate(ours)(ctx); err != nil {
			return err
		}
	}
	late := func(l *dnsLoad) bench.Measure {
		return func(context.Context) (float64, error) {
			got, err := l.ask(dnsOrder{Time: d, Window: dnsWindow, Rate: fastest / dnsHalf})
			return got.P99.Seconds() * 1000, err
		}
	}
	return run.Pairs(ctx, "p99-half-load", late(ours), late(peer))
}

// manyNames measures what many names add to the daemon.
func (r *rig) manyNames(ctx context.Context, run *bench.Run, app policy.AppID) error {
	if !run.Wants("memory-100k") {
		return nil
	}
	pid := r.tulle.cells[0].PID()
	before, err := peak(pid)
	if err != nil {
		return err
	}
	if err := r.tulle.mapNames(ctx, app, run.Count(dnsManyNames)); err != nil {
		return err
	}
	return run.Alone(ctx, "memory-100k", func(context.Context) (float64, error) {
		after, err := peak(pid)
		return after - before, err
	})
}

func dnsName(i int) policy.Hostname {
	return policy.Hostname(fmt.Sprintf("name-%d.apps.internal", i))
}

// mapNames gives the app n names, and waits until the cell has them.
func (t *tulle) mapNames(ctx context.Context, app policy.AppID, n int) error {
	const atOnce = 5000
	for at := 0; at < n; at += atOnce {
		var rs []policy.Route
		for i := at; i < min(n, at+atOnce); i++ {
			rs = append(rs, policy.Route{Name: dnsName(i), App: app})
		}
		if err := t.api.MapRoutes(ctx, rs...); err != nil {
			return err
		}
	}
	return nil
}

// setDnsmasq starts dnsmasq on one host of an underlay, and a generator on the
// other.
func (r *rig) setDnsmasq(ctx context.Context) (*dnsLoad, error) {
	u, err := r.underlay(false)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "tulle-bench-dns-")
	if err != nil {
		return nil, err
	}
	r.keep(closer(func() error { return os.RemoveAll(dir) }))
	var hosts strings.Builder
	for i := range dnsNames {
		fmt.Fprintf(&hosts, "10.255.1.2 %s\n", dnsName(i))
	}
	file := filepath.Join(dir, "hosts")
	if err := os.WriteFile(file, []byte(hosts.String()), 0o644); err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	program, err := exec.LookPath("dnsmasq")
	if err != nil {
		return nil, fmt.Errorf("find the peer (Debian's package dnsmasq-base): %w", err)
	}
	at := u.Addrs[1]
	cmd := exec.CommandContext(ctx, program, "--keep-in-foreground", "--conf-file=/dev/null", "--port=53", "--listen-address="+at.String(), "--bind-interfaces",
		"--no-resolv", "--no-hosts", "--addn-hosts="+file, "--local=/apps.internal/", "--user=", "--group=", "--pid-file=")
	cmd.Stderr = os.Stderr
	if err := u.Hosts[1].Do(cmd.Start); err != nil {
		return nil, fmt.Errorf("start dnsmasq: %w", err)
	}
	r.keep(closer(func() error {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()         // by that
		return nil
	}))
	l, err := startDNSLoad(ctx, u.Hosts[0], netip.AddrPortFrom(at, 53))
	if err == nil {
		r.keep(l)
	}
	return l, err
}

type closer func() error

func (c closer) Close() error { return c() }

// dnsLoad is a generator in another process, in a namespace.
type dnsLoad struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
	to  netip.AddrPort
}

func startDNSLoad(ctx context.Context, in *netlab.Namespace, to netip.AddrPort) (*dnsLoad, error) {
	cmd, err := bench.Play(ctx, dnsRole)
	if err != nil {
		return nil, err
	}
	l := &dnsLoad{cmd: cmd, to: to}
	if l.in, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	l.out = json.NewDecoder(out)
	if err := in.Do(cmd.Start); err != nil {
		return nil, fmt.Errorf("start a generator of questions: %w", err)
	}
	// Until both answer: routes take effect in their time.
	for begun := time.Now(); ; {
		got, err := l.ask(dnsOrder{Time: 50 * time.Millisecond, Window: 1})
		if err != nil || got.Rate > 0 {
			return l, err
		}
		if time.Since(begun) > reachPatience {
			return l, fmt.Errorf("nobody answers at %s", to)
		}
	}
}

func (l *dnsLoad) ask(o dnsOrder) (got dnsResult, err error) {
	o.To = l.to
	if err := json.NewEncoder(l.in).Encode(o); err != nil {
		return got, err
	}
	if err := l.out.Decode(&got); err != nil {
		return got, err
	}
	if got.Error != "" {
		return got, errors.New(got.Error)
	}
	return got, nil
}

// Close ends the generator.
func (l *dnsLoad) Close() error { return errors.Join(l.in.Close(), l.cmd.Wait()) }
