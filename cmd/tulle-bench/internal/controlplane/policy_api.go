package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"tulle/cmd/tulle-bench/internal/bench"
	"tulle/policy/api"
)

// Databases.
const (
	sqlite   = "sqlite"
	postgres = "postgres"
)

// clients is how many users create at once, each on a connection of its own.
const clients = 8

const fsyncPeer = "write of 4 KiB and fsync, p99"

func policyAPI() bench.Scenario {
	return bench.Scenario{
		Name:    "policy-api",
		Summary: "users of the policy API: 60,000 policies over 20,000 apps, 8 clients over HTTPS, every create durable",
		Metrics: []bench.Metric{
			{Name: "create-p99-sqlite", Unit: "ms", Peer: fsyncPeer, Bar: bench.AtMostBeyondPeer(10)},
			{Name: "create-p50-sqlite", Unit: "ms"},
			{Name: "creates-sqlite", Unit: "1/s"},
			{Name: "list-sqlite", Unit: "ms", Bar: bench.AtMost(500)},
			{Name: "memory-sqlite", Unit: "MB", Bar: bench.AtMost(300)},
			{Name: "create-p99-postgres", Unit: "ms", Peer: fsyncPeer, Bar: bench.AtMostBeyondPeer(20)},
			{Name: "create-p50-postgres", Unit: "ms"},
			{Name: "creates-postgres", Unit: "1/s"},
			{Name: "list-postgres", Unit: "ms", Bar: bench.AtMost(500)},
			{Name: "memory-postgres", Unit: "MB", Bar: bench.AtMost(300)},
			{Name: "create-p99-million", Unit: "ms", Peer: fsyncPeer, Long: true},
			{Name: "list-million", Unit: "ms", Long: true},
			{Name: "memory-million", Unit: "MB", Long: true},
		},
		Run: func(ctx context.Context, r *bench.Run) error {
			for _, c := range []struct {
				suffix, database string
				policies         int
			}{{sqlite, sqlite, policies}, {postgres, postgres, policies}, {"million", sqlite, million}} {
				if !r.Wants("create-p99-"+c.suffix, "create-p50-"+c.suffix, "creates-"+c.suffix, "list-"+c.suffix, "memory-"+c.suffix) {
					continue
				}
				if err := measureAPI(ctx, r, c.suffix, c.database, r.Count(c.policies)); err != nil {
					return fmt.Errorf("%s: %w", c.suffix, err)
				}
			}
			return nil
		},
	}
}

func measureAPI(ctx context.Context, r *bench.Run, suffix, database string, n int) (err error) {
	s, err := newSite(ctx, database)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	begun := time.Now()
	apps := r.Count(apps)
	if err := s.fill(ctx, somePolicies(n, apps)); err != nil {
		return err
	}
	r.Note("%d policies over %d apps stored in %.1f s, in requests of up to %d", n, apps, time.Since(begun).Seconds(), atOnce)
	var p99, p50, rate, disk, list, memory []float64
	for run := range r.Runs("create-p99-" + suffix) {
		one, f, err := s.beside(ctx, run, r.Number(2000, 800), apps)
		if err != nil {
			return err
		}
		p99, p50, rate = append(p99, bench.Percentile(one.ms, 99)), append(p50, bench.Median(one.ms)), append(rate, one.rate)
		disk = append(disk, bench.Percentile(f, 99))
		r.Note("the disk in run %d: fsync median %.2f ms, p99 %.2f ms", run, bench.Median(f), disk[run])
		ms, err := s.list(ctx, n+(run+1)*len(one.ms))
		if err != nil {
			return err
		}
		list = append(list, ms)
		mb, err := rss(s.Server.PID(), "VmHWM")
		if err != nil {
			return err
		}
		memory = append(memory, mb*1.048576)
	}
	return errors.Join(
		r.Report("create-p99-"+suffix, p99, disk), r.Report("create-p50-"+suffix, p50, nil),
		r.Report("creates-"+suffix, rate, nil), r.Report("list-"+suffix, list, nil), r.Report("memory-"+suffix, memory, nil))
}

// slices is how often creates and the disk's own measurement take turns in one
// run, so that whoever else uses the disk disturbs both alike.
const slices = 10

func (s *site) beside(ctx context.Context, run, n, apps int) (all creates, disk []float64, err error) {
	for slice := range slices {
		one, err := s.creates(ctx, run*slices+slice, max(1, n/slices), apps)
		if err != nil {
			return all, nil, err
		}
		f, err := fsyncs(s.Dir, max(1, n/slices))
		if err != nil {
			return all, nil, err
		}
		all.ms, all.rate = append(all.ms, one.ms...), all.rate+one.rate/slices
		disk = append(disk, f...)
	}
	return all, disk, nil
}

type creates struct {
	ms   []float64
	rate float64 // 1/s
}

// creates has all clients create policies, one a request, one request at a time.
func (s *site) creates(ctx context.Context, slice, n, apps int) (creates, error) {
	var mu sync.Mutex // guards got and failed
	var got creates
	var failed error
	var wg sync.WaitGroup
	begun := time.Now()
	for c := range clients {
		wg.Go(func() {
			u := s.user()
			defer u.close()
			ms, err := createSome(ctx, u, slice, c, max(1, n/clients), apps)
			mu.Lock()
			defer mu.Unlock()
			got.ms = append(got.ms, ms...)
			failed = errors.Join(failed, err)
		})
	}
	wg.Wait()
	got.rate = float64(len(got.ms)) / time.Since(begun).Seconds()
	return got, failed
}

func createSome(ctx context.Context, u *user, slice, client, n, apps int) (ms []float64, err error) {
	if _, err := u.do(ctx, "GET", "/", nil); err != nil { // the connection is not what is measured
		return nil, err
	}
	for i := range n {
		// Ports below those of the filling: each is new.
		p := tcp(appID((client*n+i)%apps), appID((client*n+i+1)%apps), uint16(1+slice*clients+client))
		body, err := encode(p)
		if err != nil {
			return nil, err
		}
		begun := time.Now()
		if _, err := u.do(ctx, "POST", pathPolicies, body); err != nil {
			return nil, err
		}
		ms = append(ms, time.Since(begun).Seconds()*1000)
	}
	return ms, nil
}

// list reads the full list, to its last byte, and wants so many.
func (s *site) list(ctx context.Context, want int) (ms float64, err error) {
	u := s.user()
	defer u.close()
	if _, err := u.do(ctx, "GET", "/", nil); err != nil {
		return 0, err
	}
	begun := time.Now()
	body, err := u.do(ctx, "GET", pathPolicies, nil)
	ms = time.Since(begun).Seconds() * 1000
	if err != nil {
		return 0, err
	}
	var got api.Policies
	if err := json.Unmarshal(body, &got); err != nil {
		return 0, err
	}
	if len(got.Policies) != want {
		return 0, fmt.Errorf("the list has %d policies, want %d", len(got.Policies), want)
	}
	return ms, nil
}
