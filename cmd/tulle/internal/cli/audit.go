package cli

import (
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"tulle/policy/api"
)

// audit is `tulle audit`.
func (p *program) audit() *cobra.Command {
	var limit int
	var before uint64
	cmd := &cobra.Command{
		Use:   "audit [--limit N] [--before ID]",
		Short: "Show who changed what, the last change at the end",
		Long: `Shows the newest changes of policies, leases, peers and apps, the last one at the
end; --before goes further back. What a thing was before and after is in the JSON
output. Needs an admin's token.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := exactArgs(cmd, args); err != nil {
				return err
			}
			if limit < 1 || limit > api.MaxAuditLimit {
				return usageError(cmd, "--limit %d: must be from 1 to %d", limit, api.MaxAuditLimit)
			}
			c, err := p.client()
			if err != nil {
				return err
			}
			query := url.Values{"limit": {strconv.Itoa(limit)}}
			if before > 0 {
				query.Set("before", strconv.FormatUint(before, 10))
			}
			var got api.Audit
			if err := c.get(cmd.Context(), api.PathAudit, query, &got); err != nil {
				return err
			}
			return p.print(got, func(w io.Writer) {
				rows := [][]string{{"id", "time", "who", "from", "revision", "action", "subject"}}
				for _, e := range slices.Backward(got.Entries) {
					rows = append(rows, []string{strconv.FormatUint(e.ID, 10), when(e.At), e.Who, e.From,
						strconv.FormatUint(uint64(e.Revision), 10), string(e.Action), e.Subject})
				}
				table(w, rows)
				if got.Next > 0 {
					fmt.Fprintf(w, "\nThere are older ones: tulle audit --before %d\n", got.Next)
				}
			})
		},
	}
	cmd.Flags().IntVar(&limit, "limit", api.DefaultAuditLimit, "how many changes to show")
	cmd.Flags().Uint64Var(&before, "before", 0, "only changes older than the one with this id")
	return cmd
}
