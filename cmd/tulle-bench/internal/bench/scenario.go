package bench

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
)

// Scenario is one situation, in which one or several metrics are measured.
type Scenario struct {
	Name    string
	Summary string // one line: what is measured against what
	Metrics []Metric
	// Run measures the metrics that r.Wants and leaves nothing behind, also when
	// it fails or the context ends.
	Run func(ctx context.Context, r *Run) error
}

// Metric is one figure of a scenario.
type Metric struct {
	Name string
	Unit string
	Peer string // what ours is held against; empty: nothing
	Bar  Bar    // what is asked of it; the zero value: nothing
	// Runs is the least number of runs (of each side); 0 means 5, which is also
	// the least it may be.
	Runs int
	// Long is a metric that --quick leaves out unless it is named.
	Long bool
}

// leastRuns is how many runs a median needs at least.
const leastRuns = 5

func (m Metric) runs() int { return max(m.Runs, leastRuns) }

// Bar is what is asked of a figure. The zero value asks nothing.
type Bar struct {
	text string
	met  func(Figure) bool
}

// RatioAtLeast asks that ours is v times the peer's or more.
func RatioAtLeast(v float64) Bar {
	return Bar{fmt.Sprintf("ratio ≥ %v", v), func(f Figure) bool { return f.Ratio != nil && *f.Ratio >= v }}
}

// RatioAtMost asks that ours is v times the peer's or less.
func RatioAtMost(v float64) Bar {
	return Bar{fmt.Sprintf("ratio ≤ %v", v), func(f Figure) bool { return f.Ratio != nil && *f.Ratio <= v }}
}

// AtMost asks that ours is v or less.
func AtMost(v float64) Bar {
	return Bar{fmt.Sprintf("≤ %v", v), func(f Figure) bool { return f.Ours <= v }}
}

// AtMostBeyondPeer asks that ours is at most v more than the peer's.
func AtMostBeyondPeer(v float64) Bar {
	return Bar{fmt.Sprintf("≤ %v beyond the peer", v), func(f Figure) bool { return f.Peer != nil && f.Ours-*f.Peer <= v }}
}

func (b Bar) String() string { return b.text }

// verdict is "met", "missed", or nothing where nothing is asked.
func (b Bar) verdict(f Figure) string {
	switch {
	case b.met == nil:
		return ""
	case b.met(f):
		return "met"
	}
	return "missed"
}

// Role is a part that the program plays in another process.
type Role struct {
	Name string
	Run  func(ctx context.Context, args []string, in io.Reader, out io.Writer) error
}

// roleCommand is the argument after which a role's name follows.
const roleCommand = "role"

// Play is a command of this program, not yet started, in which it plays a role.
// The program's main must know the role (a test's: see [Act]).
func Play(ctx context.Context, role string, args ...string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	cmd := exec.CommandContext(ctx, self, append([]string{roleCommand, role}, args...)...)
	cmd.Stderr = os.Stderr
	return cmd, nil
}

// Act plays a role and ends the program if it was started for that, and returns
// otherwise. A test calls it first in TestMain.
func Act(roles ...Role) {
	if len(os.Args) < 3 || os.Args[1] != roleCommand {
		return
	}
	if err := act(context.Background(), roles, os.Args[2], os.Args[3:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "role %s: %v\n", os.Args[2], err)
		os.Exit(1)
	}
	os.Exit(0)
}

func act(ctx context.Context, roles []Role, name string, args []string, in io.Reader, out io.Writer) error {
	for _, r := range roles {
		if r.Name == name {
			return r.Run(ctx, args, in, out)
		}
	}
	return fmt.Errorf("no role has this name")
}
