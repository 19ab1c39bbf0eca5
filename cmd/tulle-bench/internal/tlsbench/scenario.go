package tlsbench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"tulle/cmd/tulle-bench/internal/bench"
)

const peer = "haproxy, TCP mode"

// connections is how many there are at once.
const connections = 64

func scenario() bench.Scenario {
	return bench.Scenario{
		Name:    "tls",
		Summary: "TLS ended and carried to a plain port: 64 connections, ECDSA P-256, TLS 1.3 with AES-128-GCM, beside haproxy",
		Metrics: []bench.Metric{
			{Name: "throughput-1m", Unit: "MB/s", Peer: peer, Bar: bench.RatioAtLeast(1.1)},
			{Name: "requests-1k", Unit: "1/s", Peer: peer, Bar: bench.RatioAtLeast(0.9)},
			{Name: "handshakes", Unit: "1/s", Peer: peer, Bar: bench.RatioAtLeast(1.2)},
			{Name: "handshakes-resumed", Unit: "1/s", Peer: peer, Bar: bench.RatioAtLeast(0.9)},
			{Name: "added-p50", Unit: "µs", Peer: peer, Bar: bench.RatioAtMost(1.1)},
			{Name: "memory-idle", Unit: "MiB", Bar: bench.AtMost(64), Long: true},
			{Name: "memory-1000", Unit: "MiB", Bar: bench.AtMost(64), Long: true},
		},
		Run: run,
	}
}

func run(ctx context.Context, r *bench.Run) error {
	if r.Wants("throughput-1m", "requests-1k", "handshakes", "handshakes-resumed", "added-p50") {
		if err := runBeside(ctx, r); err != nil {
			return err
		}
	}
	if r.Wants("memory-idle", "memory-1000") {
		return runMemory(ctx, r)
	}
	return nil
}

// runBeside measures both proxies in front of one backend.
func runBeside(ctx context.Context, r *bench.Run) (err error) {
	dir, err := os.MkdirTemp("", "tulle-bench-tls-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s := &site{dir: dir}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.start(ctx); err != nil {
		return err
	}
	r.Note("cipher TLS_AES_128_GCM_SHA256, key ECDSA P-256, %d connections, haproxy %s", connections, s.version)
	d := r.Time(3*time.Second, time.Second)
	for _, m := range []struct {
		metric string
		load   load
		value  func(result) float64
	}{
		{"throughput-1m", load{Kind: requests, Bytes: 1 << 20, Connections: r.Count(connections)}, func(g result) float64 { return float64(g.Bytes) / g.Seconds / 1e6 }},
		{"requests-1k", load{Kind: requests, Bytes: 1 << 10, Connections: r.Count(connections)}, func(g result) float64 { return float64(g.Count) / g.Seconds }},
		{"handshakes", load{Kind: handshakes, Connections: r.Count(connections)}, func(g result) float64 { return float64(g.Count) / g.Seconds }},
		{"handshakes-resumed", load{Kind: resumed, Connections: r.Count(connections)}, func(g result) float64 { return float64(g.Count) / g.Seconds }},
	} {
		measure := func(address string) bench.Measure {
			return func(ctx context.Context) (float64, error) {
				l := m.load
				l.Address, l.Millis = address, d.Milliseconds()
				got, err := s.load(ctx, l)
				return m.value(got), err
			}
		}
		if err := r.Pairs(ctx, m.metric, measure(s.ours), measure(s.peer)); err != nil {
			return err
		}
	}
	return s.added(ctx, r, d)
}

// added is what a proxy adds to the time of one request after the other, over
// the same without any.
func (s *site) added(ctx context.Context, r *bench.Run, d time.Duration) error {
	one := func(address string, plain bool) (float64, error) {
		got, err := s.load(ctx, load{Kind: requests, Bytes: 1 << 10, Connections: 1, Address: address, Millis: d.Milliseconds(), Plain: plain})
		return got.P50, err
	}
	var bare float64
	measure := func(address string) bench.Measure {
		return func(context.Context) (float64, error) {
			v, err := one(address, false)
			if v <= bare && !r.Small() {
				return 0, errors.Join(err, fmt.Errorf("through the proxy %v µs, without %v µs: the machine is too busy to tell", v, bare))
			}
			return max(v-bare, 1), err
		}
	}
	if !r.Wants("added-p50") {
		return nil
	}
	var err error
	if bare, err = one(s.backend, true); err != nil {
		return err
	}
	r.Note("without a proxy a request takes %.0f µs", bare)
	return r.Pairs(ctx, "added-p50", measure(s.ours), measure(s.peer))
}
