package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

const defaultFuzzTime = 5 * time.Second

// event is a line of go test -json (cmd/test2json).
type event struct {
	Action  string
	Package string
	Test    string
	Elapsed float64
	Output  string
}

// report gathers what a run printed: output is kept by test and shown only for
// what failed or was skipped.
type report struct {
	out                     io.Writer
	output                  map[[2]string]*bytes.Buffer
	passed, failed, skipped int
	skips                   map[string][]string // tests by reason
	again                   map[string][]string // failed top-level tests by package
	broken                  []string            // packages that failed in a way that no second run mends
}

func newReport(out io.Writer) *report {
	return &report{out: out, output: make(map[[2]string]*bytes.Buffer),
		skips: make(map[string][]string), again: make(map[string][]string)}
}

// verdict is what is wrong with a run that the go tool itself found nothing
// wrong with.
func (r *report) verdict() error {
	switch {
	case r.passed == 0:
		return errors.New("no test ran")
	case r.skipped > 0 && os.Getenv("CI") == "true":
		return fmt.Errorf("%d tests were skipped, and with CI=true none may be", r.skipped)
	}
	return nil
}

func (r *report) add(e event) {
	key := [2]string{e.Package, e.Test}
	switch e.Action {
	case "build-output": // of no package's test run
		fmt.Fprint(r.out, e.Output)
	case "output":
		if r.output[key] == nil {
			r.output[key] = new(bytes.Buffer)
		}
		r.output[key].WriteString(e.Output)
	case "pass", "fail", "skip":
		r.end(key, e)
		delete(r.output, key)
	}
}

func (r *report) end(key [2]string, e event) {
	text := ""
	if b := r.output[key]; b != nil {
		text = b.String()
	}
	if e.Test == "" {
		switch e.Action {
		case "fail":
			r.unended(e.Package)
			fmt.Fprintf(r.out, "FAIL  %s (%.1f s)\n%s", e.Package, e.Elapsed, text)
			if len(r.again[e.Package]) == 0 || raced(text) { // or it did not build, ran out of time, died
				r.broken = append(r.broken, e.Package)
			}
		case "pass":
			fmt.Fprintf(r.out, "ok    %s (%.1f s)\n", e.Package, e.Elapsed)
		}
		return
	}
	switch e.Action {
	case "pass":
		r.passed++
	case "fail":
		r.failed++
		if !strings.Contains(e.Test, "/") {
			r.again[e.Package] = append(r.again[e.Package], e.Test)
		}
		if raced(text) {
			r.broken = append(r.broken, e.Package)
		}
		fmt.Fprintf(r.out, "--- FAIL: %s %s (%.1f s)\n%s", e.Package, e.Test, e.Elapsed, text)
	case "skip":
		r.skipped++
		why := reason(text)
		r.skips[why] = append(r.skips[why], e.Package+" "+e.Test)
	}
}

// unended shows what the tests printed that a package's end found running: the panic
// of a run that was out of time, or of a test, is part of their output.
func (r *report) unended(pkg string) {
	for _, key := range slices.SortedFunc(maps.Keys(r.output), func(a, b [2]string) int { return strings.Compare(a[1], b[1]) }) {
		if key[0] == pkg && key[1] != "" {
			fmt.Fprintf(r.out, "--- DID NOT END: %s %s\n%s", pkg, key[1], r.output[key])
			delete(r.output, key)
		}
	}
}

// raced: a race that was seen once is there, however often it is not seen.
func raced(text string) bool {
	return strings.Contains(text, "DATA RACE") || strings.Contains(text, "race detected")
}

// reason is what a skipped test said last, without the place where it said so.
func reason(text string) string {
	why := "no reason given"
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "===") || strings.HasPrefix(line, "---") {
			continue
		}
		if _, after, ok := strings.Cut(line, "_test.go:"); ok {
			if _, said, ok := strings.Cut(after, ": "); ok {
				line = said
			}
		}
		why = line
	}
	return why
}

// printSkips says loudly, once a reason, what was not tested.
func (r *report) printSkips() {
	for _, why := range slices.Sorted(maps.Keys(r.skips)) {
		fmt.Fprintf(r.out, "SKIPPED %d tests: %s\n", len(r.skips[why]), why)
		for _, test := range r.skips[why] {
			fmt.Fprintf(r.out, "        %s\n", strings.TrimPrefix(test, "tulle/"))
		}
	}
}

// goTest runs all tests. What failed beside the others, two packages at a time
// on what may be a busy machine, is run once more alone: failing again is a
// failure, passing is said loudly.
func goTest(ctx context.Context, out io.Writer, race bool) error {
	r := newReport(out)
	err := r.run(ctx, race, "./...")
	if err == nil || len(r.broken) > 0 || len(r.again) == 0 || ctx.Err() != nil {
		r.summary()
		return errors.Join(err, r.verdict())
	}
	for _, pkg := range slices.Sorted(maps.Keys(r.again)) {
		alone := newReport(out)
		if err := alone.run(ctx, race, "-run=^("+strings.Join(r.again[pkg], "|")+")$", pkg); err != nil {
			r.summary()
			return fmt.Errorf("%s, failed again alone: %w", pkg, err)
		}
		fmt.Fprintf(out, "UNSTEADY %s: failed beside others, passed alone: %s\n", pkg, strings.Join(r.again[pkg], ", "))
		r.passed += len(r.again[pkg])
	}
	r.failed = 0
	r.summary()
	return r.verdict()
}

func (r *report) summary() {
	r.printSkips()
	fmt.Fprintf(r.out, "%d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped)
}

// run is one go test, added to the report.
func (r *report) run(ctx context.Context, race bool, what ...string) error {
	args := []string{"test", "-json", "-count=1", "-timeout=20m"}
	env := append(os.Environ(), "CGO_ENABLED=0")
	if race {
		args = append(args, "-race")
		// The race runtime sleeps a second at each process's end, for goroutines that
		// might still race; tests that start many processes wait for most of their time.
		env = append(os.Environ(), "CGO_ENABLED=1", "GORACE=atexit_sleep_ms=0")
	}
	args = append(args, what...)
	cmd := exec.CommandContext(ctx, "go", args...)
	// go test passes an interrupt on and cleans up after its tests.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	cmd.Env = env
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewScanner(pipe)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			fmt.Fprintln(r.out, lines.Text())
			continue
		}
		r.add(e)
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// target is one fuzz function.
type target struct{ pkg, name string }

var fuzzLine = regexp.MustCompile(`^Fuzz\w*$`)

func targets(ctx context.Context) ([]target, error) {
	cmd := exec.CommandContext(ctx, "go", "test", "-list=^Fuzz", "-json", "./...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list fuzz targets: %w", err)
	}
	var ts []target
	dec := json.NewDecoder(bytes.NewReader(out))
	for {
		var e event
		if err := dec.Decode(&e); err == io.EOF {
			break
		} else if err != nil {
			return nil, fmt.Errorf("list fuzz targets: %w", err)
		}
		if name := strings.TrimSpace(e.Output); e.Action == "output" && fuzzLine.MatchString(name) {
			ts = append(ts, target{e.Package, name})
		}
	}
	slices.SortFunc(ts, func(a, b target) int { return strings.Compare(a.pkg+a.name, b.pkg+b.name) })
	return ts, nil
}

func fuzzOne(ctx context.Context, t target, d time.Duration) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", "test", "-run=^$", "-fuzz=^"+t.name+"$", "-fuzztime="+d.String(), "-parallel=1", t.pkg)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	return cmd.CombinedOutput()
}

// late reports whether a run failed only because its time was up: on a busy
// machine go test's fuzzer sometimes says so of a worker it stops itself
// (golang.org/issue/48591). A finding names an input.
func late(text []byte) bool {
	return bytes.Contains(text, []byte("context deadline exceeded")) && !bytes.Contains(text, []byte("Failing input"))
}

// fuzz runs every target for d, two at a time with one worker each: most of a
// short run is the building of the instrumented binary, which is not parallel.
func fuzz(ctx context.Context, out io.Writer, d time.Duration) error {
	ts, err := targets(ctx)
	if err != nil {
		return err
	}
	if len(ts) == 0 {
		return fmt.Errorf("no fuzz target found")
	}
	var (
		mu     sync.Mutex // guards out and failed
		failed []string
		wg     sync.WaitGroup
		next   = make(chan target)
	)
	for range 2 {
		wg.Go(func() {
			for t := range next {
				text, err := fuzzOne(ctx, t, d)
				if err != nil && late(text) {
					text, err = fuzzOne(ctx, t, d)
				}
				mu.Lock()
				if err != nil {
					failed = append(failed, t.pkg+" "+t.name)
					fmt.Fprintf(out, "FAIL  fuzz %s %s: %v\n%s", t.pkg, t.name, err, text)
				} else {
					fmt.Fprintf(out, "ok    fuzz %s %s\n", t.pkg, t.name)
				}
				mu.Unlock()
			}
		})
	}
	for _, t := range ts {
		next <- t
	}
	close(next)
	wg.Wait()
	fmt.Fprintf(out, "%d fuzz targets, %d failed\n", len(ts), len(failed))
	if len(failed) > 0 {
		return fmt.Errorf("fuzz: %s", strings.Join(failed, ", "))
	}
	return ctx.Err()
}
