package demo

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// report prints the steps as they happen: one line a check, with what was
// asked, what came back, how long it took and whether it should be so.
type report struct {
	out    io.Writer
	colour bool
	failed []string // what was asked, of each check that was not as it should be
	checks int
}

func newReport(out io.Writer) *report {
	return &report{out: out, colour: isTerminal(out) && os.Getenv("NO_COLOR") == ""}
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
	fmt.Fprintf(r.out, "\n%s\n", r.paint(bold, fmt.Sprintf(format, args...)))
}

// note says something that is no check.
func (r *report) note(format string, args ...any) {
	fmt.Fprintf(r.out, "    %s\n", r.paint(dim, fmt.Sprintf(format, args...)))
}

// Widths of the columns.
const (
	askedWidth = 52
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
	fmt.Fprintf(r.out, "  %s %s %s  %s\n", pad(asked, askedWidth), pad(got, gotWidth), padLeft(duration(took), tookWidth), verdict)
}

// fail is a check that could not even be made.
func (r *report) fail(asked string, err error) {
	r.check(false, 0, asked, err.Error())
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
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < 100*time.Millisecond:
		return fmt.Sprintf("%.1f ms", d.Seconds()*1e3)
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}
