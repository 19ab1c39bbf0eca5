package cli

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"tulle/overlay/control"
)

// nat is `tulle nat`: what containers said to the outside.
func (p *program) nat() *cobra.Command {
	cmd := &cobra.Command{Use: "nat", Short: "Say whose the connections to the outside were"}
	cmd.AddCommand(p.natWho())
	return cmd
}

func (p *program) natWho() *cobra.Command {
	var at string
	cmd := &cobra.Command{
		Use:   "who IP:PORT [--at TIME]",
		Short: "Say which container had a source port of this host",
		Long: `Says which containers, apps, spaces and orgs had a source address and port of this
host towards the outside; with --at, at that time (RFC 3339, or a time of today like
15:04:05), else ever. 0.0.0.0:PORT is the port on any of the host's addresses. The
record is bounded: what is oldest is forgotten.`,
		Example: "  tulle nat who 192.0.2.1:40312 --at 2026-03-01T12:00:00Z",
	}
	asking(cmd, []string{"IP:PORT"}, func(ctx context.Context, c *control.Client, args []string) error {
		q := control.NATWho{}
		var err error
		if q.Source, err = netip.ParseAddrPort(args[0]); err != nil || q.Source.Port() == 0 {
			return usageError(cmd, "%q: must be an address and a port, like 192.0.2.1:40312", args[0])
		}
		if at != "" {
			if q.At, err = parseTime(at, time.Now()); err != nil {
				return usageError(cmd, "--at %q: must be a time like 2026-03-01T12:00:00Z, or 15:04:05 of today", at)
			}
		}
		found, err := c.NATWho(ctx, q)
		if err != nil {
			return err
		}
		return p.print(found, func(w io.Writer) {
			if len(found) == 0 {
				fmt.Fprintln(w, "Nobody that the record knows.")
				return
			}
			rows := [][]string{{"from", "to", "protocol", "remote", "container", "app", "space", "org"}}
			for _, f := range found {
				end := "now"
				switch {
				case !f.End.IsZero():
					end = f.End.Format(time.RFC3339)
				case f.Lost:
					end = "?"
				}
				app := f.AppName
				if app == "" {
					app = string(f.App)
				}
				rows = append(rows, []string{f.Begin.Format(time.RFC3339), end, f.Protocol, f.Remote.String(), f.Container, app, f.Space, f.Org})
			}
			table(w, rows)
		})
	})
	cmd.Flags().StringVar(&at, "at", "", "when; default: any time that is recorded")
	return cmd
}

// parseTime reads a moment, or a time of now's day in now's zone.
func parseTime(s string, now time.Time) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	t, err := time.ParseInLocation(time.TimeOnly, s, now.Location())
	if err != nil {
		return t, err
	}
	y, m, d := now.Date()
	return time.Date(y, m, d, t.Hour(), t.Minute(), t.Second(), 0, now.Location()), nil
}
