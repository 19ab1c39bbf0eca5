package dataplane

import (
	"context"
	"errors"
	"fmt"

	"tulle/cmd/tulle-bench/internal/bench"
	"tulle/cmd/tulle-bench/internal/netlab"
	"tulle/policy/api"
)

// counts are the numbers of policies at the destination, with what is asked at
// each.
var counts = []struct {
	n                       int
	throughput, connections float64
}{{1000, 1.2, 1.5}, {10000, 5, 8}}

// positions are those of the policy that matches, in the peer's list.
var positions = []struct {
	suffix string
	at     func(n int) int
}{
	{"", func(n int) int { return n - 1 }},
	{"-second", func(int) int { return 1 }},
	{"-middle", func(n int) int { return n / 2 }},
}

func crossCellVXLAN() bench.Scenario {
	metrics := []bench.Metric{{Name: "throughput", Unit: "Gbit/s", Peer: kernelPeer, Bar: bench.RatioAtLeast(0.75)}}
	for _, c := range counts {
		for i, p := range positions {
			t := bench.Metric{Name: fmt.Sprintf("throughput-%d%s", c.n, p.suffix), Unit: "Gbit/s", Peer: kernelPeer, Long: i > 0}
			n := bench.Metric{Name: fmt.Sprintf("crr-%d%s", c.n, p.suffix), Unit: "1/s", Peer: kernelPeer, Long: i > 0}
			if i == 0 {
				t.Bar, n.Bar = bench.RatioAtLeast(c.throughput), bench.RatioAtLeast(c.connections)
			}
			metrics = append(metrics, t, n)
		}
	}
	return bench.Scenario{
		Name:    "cross-cell-vxlan",
		Summary: "one TCP stream and new connections between two cells, with 1, 1,000 and 10,000 policies at the destination",
		Metrics: metrics,
		Run: func(ctx context.Context, run *bench.Run) error {
			return besideKernel(ctx, run, false, 2, func(r *rig) error { return r.byPolicies(ctx, run) })
		},
	}
}

func (r *rig) byPolicies(ctx context.Context, run *bench.Run) error {
	d := length(run)
	if err := run.Pairs(ctx, "throughput", r.ours.throughput(d), r.peer.throughput(d)); err != nil {
		return err
	}
	for _, c := range counts {
		for _, p := range positions {
			throughput, connections := fmt.Sprintf("throughput-%d%s", c.n, p.suffix), fmt.Sprintf("crr-%d%s", c.n, p.suffix)
			if !run.Wants(throughput, connections) {
				continue
			}
			if err := r.tulle.allow(ctx, c.n); err != nil {
				return err
			}
			if err := r.kernel.Policies(c.n, p.at(c.n)); err != nil {
				return err
			}
			if err := run.Pairs(ctx, throughput, r.ours.throughput(d), r.peer.throughput(d)); err != nil {
				return err
			}
			if err := run.Pairs(ctx, connections, r.ours.connections(d), r.peer.connections(d)); err != nil {
				return err
			}
		}
	}
	return nil
}

func crossCellPlainNIC() bench.Scenario {
	return bench.Scenario{
		Name:    "cross-cell-plain-nic",
		Summary: "one TCP stream between two cells on a link without TSO, GSO, GRO and UDP segmentation",
		Metrics: []bench.Metric{{Name: "throughput", Unit: "Gbit/s", Peer: kernelPeer, Bar: bench.RatioAtLeast(0.5)}},
		Run: func(ctx context.Context, run *bench.Run) error {
			return besideKernel(ctx, run, true, 2, func(r *rig) error {
				d := length(run)
				return run.Pairs(ctx, "throughput", r.ours.throughput(d), r.peer.throughput(d))
			})
		},
	}
}

func sameCell() bench.Scenario {
	return bench.Scenario{
		Name:    "same-cell",
		Summary: "one TCP stream between two containers of one cell",
		Metrics: []bench.Metric{{Name: "throughput", Unit: "Gbit/s", Peer: "kernel veth and routing, iptables rules as silk's", Bar: bench.RatioAtLeast(0.9)}},
		Run: func(ctx context.Context, run *bench.Run) error {
			return besideKernel(ctx, run, false, 1, func(r *rig) error {
				d := length(run)
				return run.Pairs(ctx, "throughput", r.ours.throughput(d), r.peer.throughput(d))
			})
		},
	}
}

func crossCellWireGuard() bench.Scenario {
	return bench.Scenario{
		Name:    "cross-cell-wireguard",
		Summary: "one TCP stream between two cells in mode wireguard, policy on, against a tunnel alone",
		Metrics: []bench.Metric{{Name: "throughput", Unit: "Gbit/s", Peer: "wireguard-go, tunnel alone", Bar: bench.RatioAtLeast(1.6)}},
		Run: func(ctx context.Context, run *bench.Run) (err error) {
			r := &rig{}
			defer func() { err = errors.Join(err, r.Close()) }()
			if err := r.setOurs(ctx, false, 2, api.ModeWireGuard); err != nil {
				return err
			}
			if err := r.setWireGuard(ctx, r.tulle.mtu); err != nil {
				return err
			}
			run.Note("MTU of the endpoints and of the peer's device %d, of the underlay %d", r.tulle.mtu, netlab.MTU)
			d := length(run)
			return run.Pairs(ctx, "throughput", r.ours.throughput(d), r.peer.throughput(d))
		},
	}
}
