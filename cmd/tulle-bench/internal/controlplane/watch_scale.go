package controlplane

import (
	"context"
	"errors"
	"fmt"
	"time"

	"tulle/cmd/tulle-bench/internal/bench"
)

func watchScale() bench.Scenario {
	return bench.Scenario{
		Name:    "watch-scale",
		Summary: "1,000 cells on watches, each its own mutual-TLS connection, 60,000 policies; the server killed and started again",
		Metrics: []bench.Metric{
			{Name: "memory-per-cell", Unit: "KiB", Bar: bench.AtMost(128)},
			{Name: "reconnect", Unit: "s", Bar: bench.AtMost(10)},
		},
		Run: measureWatchScale,
	}
}

func measureWatchScale(ctx context.Context, r *bench.Run) (err error) {
	s, err := newSite(ctx, sqlite)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	cells, apps := r.Count(many), r.Count(apps)
	if err := s.fill(ctx, somePolicies(r.Count(policies), apps)); err != nil {
		return err
	}
	t, err := s.muster(ctx, r, cells, apps)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	// The server as it is without any watch, and nothing left of the filling.
	if err := s.Server.Stop(); err != nil {
		return err
	}
	if err := s.Server.Restart(ctx); err != nil {
		return err
	}
	before := 0.0
	if r.Wants("memory-per-cell") {
		if before, err = s.settled(ctx, r); err != nil {
			return err
		}
	}
	watching, err := t.do(order{Do: "watch"})
	if err != nil {
		return err
	}
	r.Note("all watch after %.1f s", watching.Milliseconds/1000)
	u := s.user()
	defer u.close()
	if r.Wants("memory-per-cell") {
		var memory []float64
		for range r.Runs("memory-per-cell") {
			after, err := s.settled(ctx, r)
			if err != nil {
				return err
			}
			memory = append(memory, (after-before)*1024/float64(cells))
		}
		if err := r.Report("memory-per-cell", memory, nil); err != nil {
			return err
		}
	}
	run := 0
	return r.Alone(ctx, "reconnect", func(ctx context.Context) (float64, error) {
		run++
		return s.restart(ctx, t, u, run, apps)
	})
}

// restart kills the server just after a change, starts it again, makes another
// at once, and says how many seconds it took from its being ready until every
// cell had both.
func (s *site) restart(ctx context.Context, t *troops, u *user, run, apps int) (float64, error) {
	port := uint16(10 + run)
	if _, _, err := change(ctx, u, tcp(appID(1), appID(0), port), false, 0); err != nil {
		return 0, err
	}
	if err := s.Server.Kill(); err != nil {
		return 0, err
	}
	if err := s.Server.Restart(ctx); err != nil {
		return 0, err
	}
	begun := time.Now()
	revision, _, err := change(ctx, u, tcp(appID(2), appID(0), port), false, 0)
	if err != nil {
		return 0, err
	}
	if _, err := t.do(order{Do: "reach", Revision: revision}); err != nil {
		return 0, err
	}
	took := time.Since(begun).Seconds()
	if err := s.complete(ctx, t); err != nil {
		return 0, fmt.Errorf("after restart %d: %w", run, err)
	}
	return took, nil
}

// settled is the server's resident memory in MiB once it has stopped falling:
// a burst leaves garbage behind, which is given back bit by bit.
func (s *site) settled(ctx context.Context, r *bench.Run) (float64, error) {
	least, still := 0.0, 0
	for still < 3 {
		mb, err := rss(s.Server.PID(), "VmRSS")
		if err != nil {
			return 0, err
		}
		if least == 0 || mb < least-0.25 {
			least, still = mb, 0
		} else {
			still++
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(time.Duration(r.Count(int(time.Second)))):
		}
	}
	return least, nil
}
