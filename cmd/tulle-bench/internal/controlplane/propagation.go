package controlplane

import (
	"context"
	"errors"
	"fmt"

	"tulle/cmd/tulle-bench/internal/bench"
)

// propagation measures what a user sees who asks for the receipt: from sending
// a change to the answer that it is in force on all cells that it concerns. The
// bar is about the part after the change is stored; the figure has that part too.
func propagation() bench.Scenario {
	return bench.Scenario{
		Name:    "propagation",
		Summary: "a change, from its request to the acknowledgement by all cells it concerns: 1,000 cells, 60,000 policies",
		Metrics: []bench.Metric{{Name: "enforced-p99", Unit: "ms", Bar: bench.AtMost(250)}},
		Run:     measurePropagation,
	}
}

func measurePropagation(ctx context.Context, r *bench.Run) (err error) {
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
	watching, err := t.do(order{Do: "watch"})
	if err != nil {
		return err
	}
	r.Note("all watch after %.1f s", watching.Milliseconds/1000)
	u := s.user()
	defer u.close()
	var p99, everywhere []float64
	for run := range r.Runs("enforced-p99") {
		var ms, all []float64
		for i := range r.Number(200, 100) {
			// Two apps of two instances each: up to four cells.
			a := 1 + (run*1000+i)%(apps-1)
			_, took, err := change(ctx, u, tcp(appID(a), appID(1+(a+1)%(apps-1)), uint16(10+run)), true, 1)
			if err != nil {
				return err
			}
			ms = append(ms, took.Seconds()*1000)
			if i%20 > 0 {
				continue
			}
			// And one that concerns every cell.
			if _, took, err = change(ctx, u, tcp(appID(a), appID(0), uint16(10+run)), true, cells); err != nil {
				return err
			}
			all = append(all, took.Seconds()*1000)
		}
		p99 = append(p99, bench.Percentile(append(ms, all...), 99))
		everywhere = append(everywhere, bench.Median(all))
	}
	r.Note("one change in twenty concerns all %d cells: these take %.0f ms (median), and are the slowest", cells, bench.Median(everywhere))
	if err := s.complete(ctx, t); err != nil {
		return fmt.Errorf("after the measurement: %w", err)
	}
	return r.Report("enforced-p99", p99, nil)
}
