package bench

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Measure measures once.
type Measure func(ctx context.Context) (float64, error)

// Run is one run of a scenario: what is asked of it, and where its figures go.
// It is for one goroutine.
type Run struct {
	// Quick asks for short runs: the whole is to end within quickLimit.
	Quick bool

	scale    float64 // of sizes; 1 but in tests of the program itself
	scenario Scenario
	wanted   []string
	done     []string
	out      sink
}

// Wants reports whether any of the metrics is asked for.
func (r *Run) Wants(metrics ...string) bool {
	return slices.ContainsFunc(metrics, func(m string) bool { return slices.Contains(r.wanted, m) })
}

// shortest is what a run lasts at least, at whatever scale.
const shortest = 20 * time.Millisecond

// Time is how long something lasts: full, or less if the run is a quick one.
func (r *Run) Time(full, quick time.Duration) time.Duration {
	d := full
	if r.Quick {
		d = quick
	}
	if r.scale != 1 {
		d = min(d, max(shortest, time.Duration(float64(d)*r.scale)))
	}
	return d
}

// Number is how many of something are measured: full, or less if the run is a
// quick one.
func (r *Run) Number(full, quick int) int {
	if r.Quick {
		return r.Count(quick)
	}
	return r.Count(full)
}

// Small reports whether sizes are scaled, so that what comes out are no figures.
func (r *Run) Small() bool { return r.scale != 1 }

// Count is the size of something, such as a number of policies, at the run's
// scale.
func (r *Run) Count(full int) int { return max(1, int(float64(full)*r.scale)) }

// Note says something about the run that no figure says, such as the MTU.
func (r *Run) Note(format string, args ...any) {
	r.out.note(r.scenario.Name + ": " + fmt.Sprintf(format, args...))
}

// Runs is how many runs a metric has at least.
func (r *Run) Runs(metric string) int {
	m, err := r.metric(metric)
	if err != nil {
		return leastRuns
	}
	return m.runs()
}

// Pairs measures ours and the peer's in turn and reports the medians, if the
// metric is asked for.
func (r *Run) Pairs(ctx context.Context, metric string, ours, peer Measure) error {
	if !r.Wants(metric) {
		return nil
	}
	var a, b []float64
	for range r.Runs(metric) {
		v, err := ours(ctx)
		if err != nil {
			return fmt.Errorf("%s, ours: %w", metric, err)
		}
		a = append(a, v)
		if v, err = peer(ctx); err != nil {
			return fmt.Errorf("%s, the peer's: %w", metric, err)
		}
		b = append(b, v)
	}
	return r.Report(metric, a, b)
}

// Alone measures ours, which is held against nothing, and reports the median,
// if the metric is asked for.
func (r *Run) Alone(ctx context.Context, metric string, ours Measure) error {
	if !r.Wants(metric) {
		return nil
	}
	var a []float64
	for range r.Runs(metric) {
		v, err := ours(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", metric, err)
		}
		a = append(a, v)
	}
	return r.Report(metric, a, nil)
}

// Report takes what was measured elsewhere, one value a run, for scenarios
// that get several metrics out of one run. Of a metric that is not asked for it
// takes no notice.
func (r *Run) Report(metric string, ours, peer []float64) error {
	if !r.Wants(metric) {
		return nil
	}
	m, err := r.metric(metric)
	if err != nil {
		return err
	}
	f := Figure{Scenario: r.scenario.Name, Metric: m.Name, Unit: m.Unit, Ours: Median(ours), PeerName: m.Peer, Runs: len(ours)}
	if m.Peer != "" {
		if len(peer) != len(ours) {
			return fmt.Errorf("%s: %d runs of ours and %d of the peer's: they go in pairs", metric, len(ours), len(peer))
		}
		p := Median(peer)
		f.Peer = &p
		if p != 0 {
			ratio := f.Ours / p
			f.Ratio = &ratio
		}
	}
	if len(ours) > 0 {
		r.spread(metric, "ours", ours)
		if m.Peer != "" {
			r.spread(metric, m.Peer, peer)
		}
	}
	r.done = append(r.done, metric)
	return r.out.figure(f, m.Bar)
}

// spread notes every value: a median alone hides how steady it is.
func (r *Run) spread(metric, side string, values []float64) {
	var s string
	for _, v := range values {
		s += " " + number(v)
	}
	r.Note("%s, %s:%s", metric, side, s)
}

// LeaveOut says that a metric cannot be measured here, and why.
func (r *Run) LeaveOut(metric, why string) {
	if r.Wants(metric) {
		r.Note("%s is left out: %s", metric, why)
		r.done = append(r.done, metric)
	}
}

func (r *Run) metric(name string) (Metric, error) {
	for _, m := range r.scenario.Metrics {
		if m.Name == name {
			return m, nil
		}
	}
	return Metric{}, fmt.Errorf("scenario %s has no metric %q", r.scenario.Name, name)
}

// missing are the metrics that were asked for and not reported.
func (r *Run) missing() []string {
	return slices.DeleteFunc(slices.Clone(r.wanted), func(m string) bool { return slices.Contains(r.done, m) })
}
