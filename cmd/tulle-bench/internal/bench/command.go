package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// quickLimit is when a quick run must be over, setting up and clearing away included.
const quickLimit = 50 * time.Second

// ErrUsage is a command line that makes no sense.
var ErrUsage = errors.New("usage")

// ErrLeftOut is what a scenario returns, wrapped with the reason, when this
// machine lacks what it is held against. It is noted, and no failure.
var ErrLeftOut = errors.New("left out")

type choice struct {
	scenario, metric string
	quick, json      bool
	scale            float64
}

// Command is the command line over the scenarios.
func Command(scenarios []Scenario, roles []Role) *cobra.Command {
	var c choice
	root := &cobra.Command{
		Use:   "tulle-bench",
		Short: "Measure Tulle beside what it replaces, on this machine",
		Long: "Measure Tulle beside what it replaces, on this machine: runs alternate, figures are medians.\n" +
			"Without --scenario all scenarios run. Most need root, for namespaces of their own.",
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return measure(cmd, scenarios, c)
		},
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w: %w", ErrUsage, err) })
	f := root.Flags()
	f.StringVar(&c.scenario, "scenario", "", "run this one (see tulle-bench list)")
	f.StringVar(&c.metric, "metric", "", "measure this metric of the scenario alone")
	f.BoolVar(&c.quick, "quick", false, "short runs: a scenario ends within 50 s")
	f.BoolVar(&c.json, "json", false, "one JSON object a figure and line, instead of a table")
	// A figure of a smaller world is no figure; whether the scenario works is seen
	// as well.
	f.Float64Var(&c.scale, "scale", 1, "sizes, as a part of the full ones")
	f.Lookup("scale").Hidden = true
	root.AddCommand(listCommand(scenarios), rolesCommand(roles))
	return root
}

func listCommand(scenarios []Scenario) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the scenarios, their metrics and bars", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			for _, s := range scenarios {
				fmt.Fprintf(w, "%s: %s\n", s.Name, s.Summary)
				for _, m := range s.Metrics {
					long := ""
					if m.Long {
						long = "not in --quick unless named"
					}
					fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%s\n", m.Name, m.Unit, m.Bar, m.Peer, long)
				}
			}
			return w.Flush()
		},
	}
}

func rolesCommand(roles []Role) *cobra.Command {
	return &cobra.Command{
		Use: roleCommand + " NAME [ARGUMENT…]", Short: "Play a part of a scenario, which starts this itself",
		Hidden: true, Args: cobra.MinimumNArgs(1), DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := act(cmd.Context(), roles, args[0], args[1:], cmd.InOrStdin(), cmd.OutOrStdout()); err != nil {
				return fmt.Errorf("role %s: %w", args[0], err)
			}
			return nil
		},
	}
}

func measure(cmd *cobra.Command, scenarios []Scenario, c choice) error {
	chosen, err := choose(scenarios, c)
	if err != nil {
		return err
	}
	var out sink = &table{out: cmd.OutOrStdout()}
	if c.json {
		out = lines{cmd.OutOrStdout(), cmd.ErrOrStderr()}
	}
	out.note(machine())
	if c.scale != 1 {
		out.note(fmt.Sprintf("scale %v: these are no figures", c.scale))
	}
	var errs []error
	for _, s := range chosen {
		if err := measureOne(cmd.Context(), s, c, out); err != nil {
			errs = append(errs, fmt.Errorf("scenario %s: %w", s.Name, err))
			out.note(errs[len(errs)-1].Error())
		}
		if cmd.Context().Err() != nil {
			break
		}
	}
	return errors.Join(append(errs, out.close())...)
}

func choose(scenarios []Scenario, c choice) ([]Scenario, error) {
	if c.scenario == "" {
		if c.metric != "" {
			return nil, fmt.Errorf("%w: --metric %s: say of which --scenario", ErrUsage, c.metric)
		}
		return scenarios, nil
	}
	for _, s := range scenarios {
		if s.Name != c.scenario {
			continue
		}
		has := slices.ContainsFunc(s.Metrics, func(m Metric) bool { return m.Name == c.metric })
		if c.metric != "" && !has {
			return nil, fmt.Errorf("%w: scenario %s has no metric %q; it has %s", ErrUsage, s.Name, c.metric,
				list(s.Metrics, func(m Metric) string { return m.Name }))
		}
		return []Scenario{s}, nil
	}
	return nil, fmt.Errorf("%w: no scenario is named %q; there are %s", ErrUsage, c.scenario,
		list(scenarios, func(s Scenario) string { return s.Name }))
}

func list[T any](of []T, name func(T) string) string {
	var names []string
	for _, v := range of {
		names = append(names, name(v))
	}
	return strings.Join(names, ", ")
}

func measureOne(ctx context.Context, s Scenario, c choice, out sink) error {
	r := &Run{Quick: c.quick, scale: c.scale, scenario: s, out: out}
	for _, m := range s.Metrics {
		if c.metric == m.Name || c.metric == "" && !(c.quick && m.Long) {
			r.wanted = append(r.wanted, m.Name)
		}
	}
	if c.quick && c.scale == 1 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, quickLimit)
		defer stop()
	}
	err := s.Run(ctx, r)
	switch {
	case errors.Is(err, ErrLeftOut):
		r.Note("%v", err)
		return nil
	case err != nil && ctx.Err() == context.DeadlineExceeded:
		return fmt.Errorf("a quick run has %v, and this one took longer (one --metric at a time?): %w", quickLimit, err)
	case err != nil:
		return err
	}
	if m := r.missing(); len(m) > 0 {
		return fmt.Errorf("measured no %s", strings.Join(m, ", "))
	}
	return nil
}

// machine is what the figures are of.
func machine() string {
	var u unix.Utsname
	kernel := "unknown"
	if unix.Uname(&u) == nil {
		kernel = unix.ByteSliceToString(u.Release[:])
	}
	load := "unknown"
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		load = strings.Join(strings.Fields(string(b))[:3], " ")
	}
	return fmt.Sprintf("%s %s, kernel %s, %d processors, load %s, %s", runtime.GOOS, runtime.GOARCH, kernel,
		runtime.NumCPU(), load, time.Now().UTC().Format(time.RFC3339))
}
