package cli

import (
	"io"
	"net/netip"
	"strconv"

	"github.com/spf13/cobra"

	"tulle/policy/api"
)

// list is a command that shows one answer of the policy server as a table.
func list[T any](p *program, use, short, path string, rows func(T) [][]string) *cobra.Command {
	return &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := exactArgs(cmd, args); err != nil {
				return err
			}
			c, err := p.client()
			if err != nil {
				return err
			}
			var got T
			if err := c.get(cmd.Context(), path, nil, &got); err != nil {
				return err
			}
			return p.print(got, func(w io.Writer) { table(w, rows(got)) })
		},
	}
}

func (p *program) cells() *cobra.Command {
	return list(p, "cells", "List the cells and foreign peers", api.PathCells, func(l api.Cells) [][]string {
		rows := [][]string{{"name", "kind", "mode", "underlay", "subnet", "alive", "revision", "last seen", "lease expires"}}
		for _, c := range l.Cells {
			alive, revision := "no", strconv.FormatUint(uint64(c.Acknowledged), 10)
			if c.Alive {
				alive = "yes"
			}
			if c.Kind == api.KindSilk { // a foreign peer neither speaks nor acknowledges
				alive, revision = "", ""
			}
			rows = append(rows, []string{c.Name, string(c.Kind), string(c.Mode), netip.AddrPortFrom(c.Underlay, c.Port).String(),
				c.Subnet.String(), alive, revision, when(c.LastSeen), when(c.Expires)})
		}
		return rows
	})
}

// endpoints shows apps by name in its table, which is a second question.
func (p *program) endpoints() *cobra.Command {
	return &cobra.Command{
		Use:   "endpoints",
		Short: "List the containers of all cells",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := exactArgs(cmd, args); err != nil {
				return err
			}
			c, err := p.client()
			if err != nil {
				return err
			}
			var got api.Endpoints
			if err := c.get(cmd.Context(), api.PathAllEndpoints, nil, &got); err != nil {
				return err
			}
			if p.output == "json" {
				return printJSON(p.out, got)
			}
			apps, err := c.directory(cmd.Context())
			if err != nil {
				return err
			}
			app := apps.byGUID()
			rows := [][]string{{"address", "app", "instance", "cell", "container", "space", "org"}}
			for _, e := range got.Endpoints {
				a := app(e.App)
				rows = append(rows, []string{e.Address.String(), a.Name, e.Instance, e.Cell, e.Container, a.Space, a.Org})
			}
			table(p.out, rows)
			return nil
		},
	}
}
