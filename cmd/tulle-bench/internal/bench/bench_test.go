package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMain(m *testing.M) {
	Act(echoRole)
	os.Exit(m.Run())
}

// tiny is a scenario whose values are known: ours 10, 20, …, the peer's always 10.
func tiny(order *[]string) Scenario {
	next := 0.0
	ours := func(context.Context) (float64, error) {
		*order = append(*order, "ours")
		next += 10
		return next, nil
	}
	peer := func(context.Context) (float64, error) {
		*order = append(*order, "peer")
		return 10, nil
	}
	return Scenario{
		Name: "tiny", Summary: "numbers against numbers",
		Metrics: []Metric{
			{Name: "steps", Unit: "1/s", Peer: "ten", Bar: RatioAtLeast(3)},
			{Name: "slow", Unit: "ms", Bar: AtMost(5), Long: true, Runs: 7},
			{Name: "beyond", Unit: "ms", Peer: "ten", Bar: AtMostBeyondPeer(10)},
		},
		Run: func(ctx context.Context, r *Run) error {
			if err := r.Pairs(ctx, "steps", ours, peer); err != nil {
				return err
			}
			if err := r.Alone(ctx, "slow", func(context.Context) (float64, error) { return 6, nil }); err != nil {
				return err
			}
			return r.Report("beyond", []float64{20, 20, 20, 21, 90}, []float64{9, 10, 10, 10, 10})
		},
	}
}

func execute(t *testing.T, scenarios []Scenario, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errOut bytes.Buffer
	c := Command(scenarios, []Role{echoRole})
	c.SetArgs(args)
	c.SetOut(&out)
	c.SetErr(&errOut)
	err = c.ExecuteContext(t.Context())
	return out.String(), errOut.String(), err
}

func TestFiguresAreMediansOfAlternatingRuns(t *testing.T) {
	var order []string
	out, notes, err := execute(t, []Scenario{tiny(&order)}, "--scenario", "tiny", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var got []Figure
	for dec := json.NewDecoder(strings.NewReader(out)); ; {
		var f Figure
		if err := dec.Decode(&f); err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("%v in %q", err, out)
		}
		got = append(got, f)
	}
	ten, three, two := 10.0, 3.0, 2.0
	want := []Figure{
		{Scenario: "tiny", Metric: "steps", Unit: "1/s", Ours: 30, Peer: &ten, PeerName: "ten", Ratio: &three, Runs: 5},
		{Scenario: "tiny", Metric: "slow", Unit: "ms", Ours: 6, Runs: 7},
		{Scenario: "tiny", Metric: "beyond", Unit: "ms", Ours: 20, Peer: &ten, PeerName: "ten", Ratio: &two, Runs: 5},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("figures (-want +got):\n%s", diff)
	}
	if want := strings.Fields(strings.Repeat("ours peer ", 5)); !cmp.Equal(order, want) {
		t.Errorf("order of runs %v, want %v", order, want)
	}
	if want := "tiny: steps, ours: 10 20 30 40 50"; !strings.Contains(notes, want) {
		t.Errorf("notes %q, want every value: %q", notes, want)
	}
	first := strings.SplitN(out, "\n", 2)[0]
	keys := `{"scenario":"tiny","metric":"steps","unit":"1/s","ours":30,"peer":10,"peer_name":"ten","ratio":3,"runs":5}`
	if first != keys {
		t.Errorf("line %s\nwant %s", first, keys)
	}
}

func TestTableShowsBars(t *testing.T) {
	var order []string
	out, _, err := execute(t, []Scenario{tiny(&order)})
	if err != nil {
		t.Fatal(err)
	}
	_, rows, _ := strings.Cut(out, "\nscenario")
	for _, want := range []string{"ratio ≥ 3  met ", "≤ 5  missed", "≤ 10 beyond the peer  met"} {
		if !strings.Contains(strings.Join(strings.Fields(rows), " "), strings.Join(strings.Fields(want), " ")) {
			t.Errorf("table lacks %q:\n%s", want, out)
		}
	}
}

func TestQuickLeavesOutWhatIsLong(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want int
	}{
		{[]string{"--quick", "--json"}, 2},
		{[]string{"--quick", "--json", "--scenario", "tiny", "--metric", "slow"}, 1},
		{[]string{"--json", "--scenario", "tiny", "--metric", "steps"}, 1},
		{[]string{"--json"}, 3},
	} {
		var order []string
		out, _, err := execute(t, []Scenario{tiny(&order)}, tc.args...)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Count(out, "\n"); got != tc.want {
			t.Errorf("%v: %d figures, want %d:\n%s", tc.args, got, tc.want, out)
		}
	}
}

func TestBadCommandLines(t *testing.T) {
	for _, tc := range []struct{ args, want string }{
		{"--scenario none", `no scenario is named "none"; there are tiny`},
		{"--metric steps", "say of which --scenario"},
		{"--scenario tiny --metric none", "it has steps, slow, beyond"},
		{"--fast", "unknown flag"},
	} {
		var order []string
		_, _, err := execute(t, []Scenario{tiny(&order)}, strings.Fields(tc.args)...)
		if !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.args, err, tc.want)
		}
	}
}

func TestFailuresAreNamed(t *testing.T) {
	failing := Scenario{Name: "failing", Metrics: []Metric{{Name: "x"}}, Run: func(context.Context, *Run) error {
		return errors.New("no such device")
	}}
	silent := Scenario{Name: "silent", Metrics: []Metric{{Name: "x"}}, Run: func(context.Context, *Run) error { return nil }}
	lacking := Scenario{Name: "lacking", Metrics: []Metric{{Name: "x"}}, Run: func(context.Context, *Run) error {
		return fmt.Errorf("%w: pasta is not installed", ErrLeftOut)
	}}
	var order []string
	out, notes, err := execute(t, []Scenario{failing, silent, lacking, tiny(&order)}, "--json")
	for _, want := range []string{"scenario failing: no such device", "scenario silent: measured no x"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	if err != nil && strings.Contains(err.Error(), "lacking") || !strings.Contains(notes, "lacking: left out: pasta is not installed") {
		t.Errorf("error %v, notes %q: what is lacking is a note and no error", err, notes)
	}
	if strings.Count(out, "\n") != 3 {
		t.Errorf("the others' figures are missing: %q", out)
	}
}

func TestListNamesEverything(t *testing.T) {
	var order []string
	out, _, err := execute(t, []Scenario{tiny(&order)}, "list")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"tiny: numbers against numbers", "steps", "ratio ≥ 3", "not in --quick unless named"} {
		if !strings.Contains(out, want) {
			t.Errorf("list lacks %q:\n%s", want, out)
		}
	}
}

// echoRole says its argument and what it reads.
var echoRole = Role{Name: "echo", Run: func(_ context.Context, args []string, in io.Reader, out io.Writer) error {
	fmt.Fprint(out, args[0], " ")
	_, err := io.Copy(out, in)
	return err
}}

func TestRolesArePlayedInAnotherProcess(t *testing.T) {
	cmd, err := Play(t.Context(), "echo", "--flag")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = strings.NewReader("hello")
	out, err := cmd.Output()
	if err != nil || string(out) != "--flag hello" {
		t.Fatalf("%q, %v", out, err)
	}
	if out, _, err := execute(t, nil, "role", "echo", "--flag"); err != nil || out != "--flag " {
		t.Errorf("by the command line: %q, %v", out, err)
	}
	if _, _, err := execute(t, nil, "role", "none"); err == nil {
		t.Error("a role that is not there was played")
	}
}

func TestMedianAndPercentile(t *testing.T) {
	if got := Median([]float64{4, 1, 3, 2}); got != 2.5 {
		t.Errorf("median of four: %v", got)
	}
	var hundred []float64
	for i := range 100 {
		hundred = append(hundred, float64(100-i))
	}
	for p, want := range map[float64]float64{50: 50, 99: 99, 100: 100, 0: 1} {
		if got := Percentile(hundred, p); got != want {
			t.Errorf("percentile %v: %v, want %v", p, got, want)
		}
	}
}
