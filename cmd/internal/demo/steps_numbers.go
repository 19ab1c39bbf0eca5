package demo

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"tulle/cmd/internal/echo"
)

// throughput downloads across cells for a moment.
func (t *tour) throughput(ctx context.Context) error {
	from, to := t.apps[frontend][0], t.apps[backend][1]
	e, err := from.Do(ctx, echo.Request{Op: echo.OpDownload, Address: to.At(Port), Bytes: 1 << 36, Limit: 1500 * time.Millisecond})
	if err != nil {
		return err
	}
	gbits := float64(e.Bytes) * 8 / 1e9 / e.Took.Seconds()
	t.check(e.Outcome == echo.Stopped && e.Bytes > 0, e.Took,
		fmt.Sprintf("one download, %s -> %s, %s", from, to, where(from, to)),
		fmt.Sprintf("%.2f Gbit/s, every byte checked", gbits))
	return nil
}

// capabilities reads what the kernel says of the server and the daemons.
func (t *tour) capabilities(ctx context.Context) error {
	for _, p := range []struct {
		name string
		pid  int
	}{{"tulle-policy-server", t.world.Server.PID()}, {"tulle-celld " + t.cells[0].Name, t.cells[0].PID()}, {"tulle-celld " + t.cells[1].Name, t.cells[1].PID()}} {
		status, err := os.ReadFile(procPath(p.pid, "status"))
		if err != nil {
			return err
		}
		uid, _, _ := strings.Cut(field(status, "Uid"), "\t")
		t.privileges(fmt.Sprintf("/proc/%d/status of %s", p.pid, p.name), uid, field(status, "CapEff"), field(status, "NoNewPrivs"))
	}
	i := t.apps[backend][0]
	e, err := i.Do(ctx, echo.Request{Op: echo.OpDescribe})
	if err != nil {
		return err
	}
	t.privileges("/proc/self/status inside "+i.String(), strconv.Itoa(e.UID), e.CapEff, e.NNP)
	return nil
}

// privileges checks that there are none.
func (t *tour) privileges(of, uid, effective, noNew string) {
	if effective = strings.TrimLeft(effective, "0"); effective == "" {
		effective = "0"
	}
	t.check(effective == "0" && uid != "0" && noNew == "1", 0, of,
		fmt.Sprintf("Uid: %s  CapEff: %s  NoNewPrivs: %s", uid, effective, noNew))
}

// field is a line's value in /proc/PID/status, its first tab left out.
func field(status []byte, name string) string {
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, name+":\t"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// readMetrics reads what each process counts, by its name. A process whose
// metrics cannot be read is left out; the step that shows them says so.
func (t *tour) readMetrics(ctx context.Context) map[string]Samples {
	all := make(map[string]Samples)
	for _, p := range t.counting() {
		if s, err := ReadMetrics(ctx, p.metrics); err == nil {
			all[p.name] = s
		}
	}
	return all
}

// counting lists who has metrics, and where.
func (t *tour) counting() []struct{ name, metrics string } {
	return []struct{ name, metrics string }{
		{"tulle-policy-server", t.world.Server.Metrics},
		{t.cells[0].Name, t.cells[0].Metrics},
		{t.cells[1].Name, t.cells[1].Metrics},
	}
}

// shownSamples is how many of the moved samples are printed of each process.
const shownSamples = 6

// metrics shows what the steps before have moved. The second cell's counters
// began anew with its daemon.
func (t *tour) metrics(ctx context.Context) error {
	delete(t.before, t.cells[1].Name)
	for _, p := range t.counting() {
		now, err := ReadMetrics(ctx, p.metrics)
		if err != nil {
			t.fail("/metrics of "+p.name, err)
			continue
		}
		var moved []string
		for _, sample := range now.Moved(t.before[p.name]) {
			if isOurs(sample) {
				moved = append(moved, sample)
			}
		}
		t.check(len(moved) > 0, 0, "/metrics of "+p.name, fmt.Sprintf("%d counters moved, such as", len(moved)))
		for _, sample := range moved[:min(len(moved), shownSamples)] {
			t.note("%s %g", sample, now[sample])
		}
	}
	return nil
}

// isOurs leaves out the Go runtime's own metrics and the buckets of histograms.
func isOurs(sample string) bool {
	return strings.HasPrefix(sample, "tulle_") && strings.Contains(family(sample), "_total")
}
