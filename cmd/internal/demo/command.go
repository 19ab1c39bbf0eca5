package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"tulle/policy"
	"tulle/policy/api"
)

// Errors of the demo itself; what was not as it should be stands in the report.
var (
	ErrFailed      = errors.New("the demo failed")
	ErrInterrupted = errors.New("interrupted, and everything taken away")
	ErrLeft        = errors.New("interrupted, and not everything could be taken away")
)

// Command is `tulle demo`.
func Command() *cobra.Command {
	var (
		keep bool
		o    Options
	)
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show the whole system on this host: two cells, six containers, policies",
		Long: `Starts a policy server, two cell daemons and three apps with two instances each,
as real processes in network namespaces of their own, shows what policies do
to them, and takes everything away again. It needs no root, changes nothing on the
host, and ends with status 1 if any step is not as it should be.

With --output json each check is a line of JSON, and the last line sums up.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
			defer stop()
			// A reader that has seen enough, as head has, must not end this program
			// before all is taken away; the failed write says it as well.
			signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
			// The flag is the root command's; without a root there is only text.
			output, _ := cmd.Flags().GetString("output")
			return show(ctx, cmd.OutOrStdout(), o, keep, output == "json")
		},
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "leave everything running until an interrupt, and say what to try")
	cmd.Flags().StringVar(&o.Dir, "dir", "", "directory to make and to remove (default: a temporary one)")
	cmd.Flags().StringVar(&o.BinDir, "bin", "", "where the programs are (default: beside this one)")
	cmd.Flags().StringVar(&o.Mode, "mode", "wireguard", "tunnel mode of both cells: wireguard or vxlan")
	return cmd
}

func show(ctx context.Context, out io.Writer, o Options, keep, asJSON bool) error {
	if o.Mode != string(api.ModeVXLAN) && o.Mode != string(api.ModeWireGuard) {
		return fmt.Errorf("--mode %q: must be %s or %s", o.Mode, api.ModeVXLAN, api.ModeWireGuard)
	}
	if err := CheckHost(); err != nil {
		return err
	}
	begun := time.Now()
	world, err := NewWorld(o)
	if err != nil {
		return err
	}
	t := &tour{report: newReport(out, asJSON), world: world}
	err = t.run(ctx)
	if err == nil && keep {
		if t.suggest(); t.lost == nil {
			<-ctx.Done()
		}
	}
	away := t.end()
	return t.verdict(err, away, time.Since(begun))
}

// verdict is the last word: err is what ended the steps, if they did not come to
// their end, and away says whether nothing is left.
func (r *report) verdict(err error, away bool, took time.Duration) error {
	switch {
	case errors.Is(err, context.Canceled) && away:
		return ErrInterrupted
	case errors.Is(err, context.Canceled):
		return ErrLeft
	case err != nil:
		return err
	}
	r.summary(took)
	if len(r.failed) > 0 {
		return ErrFailed
	}
	return nil
}

// end takes the world away and checks that it is gone.
func (t *tour) end() (away bool) {
	t.title("Taking everything away")
	begun := time.Now()
	if err := t.world.Close(); err != nil {
		t.fail("what is left", err)
		return false
	}
	t.check(true, time.Since(begun), "what is left", "no process, namespace, device, socket or directory")
	return true
}

// suggest says what a newcomer can do with a world that stays.
func (t *tour) suggest() {
	w := t.world
	name := backend + "." + string(policy.DefaultDomain)
	run := fmt.Sprintf("tulle run --app frontend --space %s --org %s --socket %s", Space, Org, t.cells[0].Socket)
	t.title("It stays until you press Ctrl-C. In another terminal:")
	for _, line := range []string{
		"export TULLE_SERVER=http://" + w.Server.External + " TULLE_TOKEN_FILE=" + w.Server.TokenFile(),
		"alias tulle=" + w.program("tulle"),
		fmt.Sprintf("export TULLE_SPACE=%s TULLE_ORG=%s", Space, Org),
		"tulle apps",
		"tulle cells",
		"tulle network-policies",
		"tulle add-network-policy frontend backend --protocol tcp --port 8080",
		"tulle routes",
		run + " -- curl -s http://" + name + ":" + strconv.Itoa(Port) + "/",
		run + " -- curl -s https://" + name + ":" + strconv.Itoa(TLSPort) + "/",
		"curl -s http://" + t.cells[0].Metrics + "/metrics",
		"less " + t.cells[0].Log(),
	} {
		t.command(line)
	}
}
