package cli

import (
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tulle/policy/api"
)

// policyCommand is `tulle policy`, for what the cf CLI has no command for.
func (p *program) policyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Ask how far a change of policies is",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError(cmd, "%q is no command of tulle policy", args[0])
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(p.policyWait())
	return cmd
}

// answerTime is how long beyond its wait a request may take.
const answerTime = 30 * time.Second

// unenforced is a wait that ended with cells that do not have the revision in
// force: 1 where they still could have answered, 2 where they say nothing at all.
type unenforced struct {
	text string
	code int
}

func (e *unenforced) Error() string { return e.text }
func (e *unenforced) ExitCode() int { return e.code }

// policyWait is `tulle policy wait`.
func (p *program) policyWait() *cobra.Command {
	var revision uint64
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "wait [--revision N] [--timeout 30s]",
		Short: "Wait until a revision is in force on every cell that it concerns",
		Long: `Waits until a revision is in force on every cell that it concerns, or, without
--revision, until everything up to now is in force on every cell. Cells that say
nothing are named and not waited for.

Exit status: 0 in force everywhere, 1 not yet when the time was over (or any
other error), 2 in force but on cells that are silent.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := exactArgs(cmd, args); err != nil {
				return err
			}
			if timeout < 0 || timeout > api.MaxWait {
				return usageError(cmd, "--timeout %s: must be from 0s to %s", timeout, api.MaxWait)
			}
			c, err := p.client()
			if err != nil {
				return err
			}
			query := url.Values{}
			if cmd.Flags().Changed("revision") {
				query.Set("revision", strconv.FormatUint(revision, 10))
			}
			query.Set("wait", timeout.String())
			c.http.Timeout = timeout + answerTime
			var got api.Enforced
			if err := c.get(cmd.Context(), api.PathEnforced, query, &got); err != nil {
				return err
			}
			if err := p.print(got, func(w io.Writer) { fmt.Fprintln(w, receiptText(got, time.Now())) }); err != nil {
				return err
			}
			switch {
			case len(got.Late) > 0:
				return &unenforced{fmt.Sprintf("revision %d is not in force everywhere after %s", got.Revision, timeout), 1}
			case len(got.Silent) > 0:
				return &unenforced{fmt.Sprintf("revision %d may not be in force on cells that are silent", got.Revision), 2}
			}
			return nil
		},
	}
	cmd.Flags().Uint64Var(&revision, "revision", 0, "the revision to wait for, as a change was answered with")
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long to wait for cells that answer")
	return cmd
}

// receiptText is a receipt in a line: "revision 57: 40/41, cell-7 silent 3 min".
func receiptText(e api.Enforced, now time.Time) string {
	parts := []string{fmt.Sprintf("revision %d: %s", e.Revision, e.Cells)}
	for _, c := range e.Silent {
		parts = append(parts, fmt.Sprintf("%s silent %s", printable(c.Cell), roughly(now.Sub(c.Since))))
	}
	for _, name := range e.Late {
		parts = append(parts, printable(name)+" late")
	}
	return strings.Join(parts, ", ") + fmt.Sprintf(" (%d ms)", e.Milliseconds)
}

// roughly is a duration as one says it.
func roughly(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", max(int(d.Seconds()), 0))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	}
	return fmt.Sprintf("%d h", int(d.Hours()))
}
