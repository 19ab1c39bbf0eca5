package demo

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// report prints the steps as they happen: one line a check, with what was
// asked, what came back, how long it took and whether it should be so. As JSON
// each line is an object of its own, and the last one a summary.
type report struct {
	out    io.Writer
	json   bool
	colour bool
	step   string   // the title of the step under way
	failed []string // what was asked, of each check that was not as it should be
	checks int
	lost   error // why the output takes no more; then nobody looks
}

func (r *report) printf(format string, args ...any) {
	if _, err := fmt.Fprintf(r.out, format, args...); err != nil {
		r.lost = err
	}
}

func newReport(out io.Writer, asJSON bool) *report {
	return &report{out: out, json: asJSON, colour: !asJSON && isTerminal(out) && os.Getenv("NO_COLOR") == ""}
}

// checkLine is a check in JSON.
type checkLine struct {
	Step    string  `json:"step"`
	Asked   string  `json:"asked"`
	Got     string  `json:"got"`
	Seconds float64 `json:"seconds,omitempty"` // absent where nothing was timed
	OK      bool    `json:"ok"`
}

// noteLine is what is said beside the checks, in JSON.
type noteLine struct {
	Step string `json:"step"`
	Note string `json:"note"`
}

// summaryLine is the last line in JSON.
type summaryLine struct {
	Checks  int      `json:"checks"`
	Failed  []string `json:"failed"`
	Seconds float64  `json:"seconds"`
}

func (r *report) encode(line any) {
	e := json.NewEncoder(r.out)
	e.SetEscapeHTML(false)
	if err := e.Encode(line); err != nil {
		r.lost = err
	}
}

func isTerminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// ANSI colours (ECMA-48 SGR).
const (
	bold  = "1"
	dim   = "2"
	red   = "1;31"
	green = "32"
)

func (r *report) paint(colour, s string) string {
	if !r.colour {
		return s
	}
	return "\x1b[" + colour + "m" + s + "\x1b[0m"
}

// title begins a step.
func (r *report) title(format string, args ...any) {
	r.step = fmt.Sprintf(format, args...)
	if !r.json {
		r.printf("\n%s\n", r.paint(bold, r.step))
	}
}

// note says something that is no check.
func (r *report) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if r.json {
		r.encode(noteLine{Step: r.step, Note: text})
		return
	}
	r.printf("    %s\n", r.paint(dim, text))
}

// command says what the reader can type; it is never painted, so that it can be
// copied.
func (r *report) command(line string) {
	if r.json {
		r.encode(noteLine{Step: r.step, Note: line})
		return
	}
	r.printf("  %s\n", line)
}

// Widths of the columns.
const (
	askedWidth = 56
	gotWidth   = 44
	tookWidth  = 9
)

// check prints one line; ok says whether got is as it should be.
func (r *report) check(ok bool, took time.Duration, asked, got string) {
	r.checks++
	verdict := r.paint(green, "ok")
	if !ok {
		verdict = r.paint(red, "FAILED")
		r.failed = append(r.failed, asked+": "+got)
	}
	if r.json {
		r.encode(checkLine{Step: r.step, Asked: asked, Got: got, Seconds: took.Seconds(), OK: ok})
		return
	}
	r.printf("  %s %s %s  %s\n", pad(asked, askedWidth), pad(got, gotWidth), padLeft(duration(took), tookWidth), verdict)
}

// fail is a check that could not even be made.
func (r *report) fail(asked string, err error) {
	r.check(false, 0, asked, err.Error())
}

// summary is the last word, after took.
func (r *report) summary(took time.Duration) {
	switch {
	case r.json:
		r.encode(summaryLine{Checks: r.checks, Failed: append([]string{}, r.failed...), Seconds: took.Seconds()})
	case len(r.failed) > 0:
		r.printf("\n%s\n", r.paint(red, fmt.Sprintf("%d of %d checks FAILED:", len(r.failed), r.checks)))
		for _, f := range r.failed {
			r.printf("  %s\n", f)
		}
	default:
		r.printf("\n%s\n", r.paint(green, fmt.Sprintf("All %d checks as they should be, in %s.", r.checks, duration(took))))
	}
}

func pad(s string, width int) string {
	return s + strings.Repeat(" ", max(0, width-utf8.RuneCountInString(s)))
}

func padLeft(s string, width int) string {
	return strings.Repeat(" ", max(0, width-utf8.RuneCountInString(s))) + s
}

// duration keeps three figures in the unit a reader thinks in.
func duration(d time.Duration) string {
	switch {
	case d <= 0:
		return "-"
	case d < time.Microsecond:
		return "at once"
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < 100*time.Millisecond:
		return fmt.Sprintf("%.1f ms", d.Seconds()*1e3)
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}
