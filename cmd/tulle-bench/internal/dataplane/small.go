package dataplane

import (
	"context"
	"errors"
	"fmt"

	"tulle/cmd/tulle-bench/internal/bench"
	"tulle/cmd/tulle-bench/internal/netlab"
)

func requestResponse() bench.Scenario {
	return bench.Scenario{
		Name:    "rr",
		Summary: "one byte to and fro on one connection across cells, generators and daemons pinned",
		Metrics: []bench.Metric{{Name: "rate", Unit: "1/s", Peer: kernelPeer, Bar: bench.RatioAtLeast(0.6), Runs: 9}},
		Run: func(ctx context.Context, run *bench.Run) error {
			return besideKernel(ctx, run, false, 2, func(r *rig) error {
				if err := r.pin(); err != nil {
					return err
				}
				d := length(run)
				return run.Pairs(ctx, "rate", r.ours.rate(d), r.peer.rate(d))
			})
		},
	}
}

// pin keeps each host on a processor of its own, in both worlds alike: the
// kernel does its work where the generator is.
func (r *rig) pin() error {
	errs := []error{r.ours.pin(), r.peer.pin()}
	for i, c := range r.tulle.cells {
		errs = append(errs, netlab.Pin(c.PID(), i))
	}
	return errors.Join(errs...)
}

func newConnections() bench.Scenario {
	return bench.Scenario{
		Name:    "crr",
		Summary: "new connections across cells, a byte to and fro on each, 16 clients",
		Metrics: []bench.Metric{{Name: "rate", Unit: "1/s", Peer: kernelPeer, Bar: bench.RatioAtLeast(0.9)}},
		Run: func(ctx context.Context, run *bench.Run) error {
			return besideKernel(ctx, run, false, 2, func(r *rig) error {
				d := length(run)
				return run.Pairs(ctx, "rate", r.ours.connections(d), r.peer.connections(d))
			})
		},
	}
}

func datagrams() bench.Scenario {
	sizes := []struct {
		bytes int
		bar   float64
	}{{1400, 0.7}, {64, 0.4}}
	var metrics []bench.Metric
	for _, s := range sizes {
		metrics = append(metrics, bench.Metric{Name: fmt.Sprintf("rate-%d", s.bytes), Unit: "1/s", Peer: kernelPeer, Bar: bench.RatioAtLeast(s.bar)})
	}
	return bench.Scenario{
		Name:    "udp",
		Summary: "datagrams received a second across cells, when as many are sent as go",
		Metrics: metrics,
		Run: func(ctx context.Context, run *bench.Run) error {
			return besideKernel(ctx, run, false, 2, func(r *rig) error {
				d := length(run)
				for _, s := range sizes {
					if err := run.Pairs(ctx, fmt.Sprintf("rate-%d", s.bytes), r.ours.datagrams(s.bytes, d), r.peer.datagrams(s.bytes, d)); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}
