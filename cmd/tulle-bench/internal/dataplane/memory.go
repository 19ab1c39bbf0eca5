package dataplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"tulle/cmd/tulle-bench/internal/bench"
	"tulle/cmd/tulle-bench/internal/traffic"
	"tulle/policy"
	"tulle/policy/api"
)

// Sizes of the cell whose memory is measured.
const (
	memoryContainers = 250
	memoryPolicies   = 100_000
	memoryFlows      = 10_000
	memoryApps       = 2_000
)

func memory() bench.Scenario {
	return bench.Scenario{
		Name:    "memory",
		Summary: "the daemon's peak resident memory with 250 containers, 100,000 policies and 10,000 flows",
		Metrics: []bench.Metric{{Name: "peak", Unit: "MiB", Bar: bench.AtMost(128)}},
		Run:     measureMemory,
	}
}

func measureMemory(ctx context.Context, run *bench.Run) (err error) {
	r := &rig{}
	defer func() { err = errors.Join(err, r.Close()) }()
	if err := r.setOurs(ctx, false, 1, api.ModeVXLAN); err != nil {
		return err
	}
	t := r.tulle
	if _, err := t.gather(ctx, max(2, run.Count(memoryContainers)-2), 0); err != nil {
		return err
	}
	n := run.Count(memoryPolicies)
	if err := t.allowFrom(ctx, n, run.Count(memoryApps)); err != nil {
		return err
	}
	if _, err := r.ours.client.Do(traffic.Order{Do: "flows", To: r.ours.to, Count: run.Count(memoryFlows)}); err != nil {
		return err
	}
	s, err := t.cells[0].Status(ctx)
	if err != nil {
		return err
	}
	run.Note("%d containers, %d policies, %d flows", len(s.Endpoints), s.Policies, s.Flows)
	if s.Policies < n || s.Flows < run.Count(memoryFlows) {
		return fmt.Errorf("the cell has %d policies and %d flows, fewer than asked", s.Policies, s.Flows)
	}
	return run.Alone(ctx, "peak", func(context.Context) (float64, error) { return peak(t.cells[0].PID()) })
}

// allowFrom adds policies from some apps that are nowhere to the server's app,
// each with other ports.
func (t *tulle) allowFrom(ctx context.Context, n, apps int) error {
	destination, err := t.api.AppID(ctx, serverApp)
	if err != nil {
		return err
	}
	const atOnce = 5000
	for at := 0; at < n; at += atOnce {
		var ps []policy.Policy
		for i := at; i < min(n, at+atOnce); i++ {
			port := uint16(10000 + i/apps)
			ps = append(ps, policy.Policy{Source: policy.AppID(fmt.Sprintf("elsewhere-%d", i%apps)), Destination: destination,
				Protocol: policy.TCP, Ports: policy.PortRange{Start: port, End: port}})
		}
		if err := t.api.Create(ctx, ps...); err != nil {
			return err
		}
	}
	return t.caughtUp(ctx, n)
}

// peak is the most memory that a process had resident, in MiB.
func peak(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			var kib float64
			_, err := fmt.Sscan(rest, &kib)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("process %d has no VmHWM", pid)
}
