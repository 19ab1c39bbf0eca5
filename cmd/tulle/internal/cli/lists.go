package cli

import (
	"io"
	"net/netip"
	"strconv"

	"github.com/spf13/cobra"

	"tulle/policy"
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

// listByName is list for what names apps by GUID: the table shows their names, which
// is a second question.
func listByName[T any](p *program, use, short, path string, rows func(got T, app func(policy.AppID) api.App) [][]string) *cobra.Command {
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
			if p.output == "json" {
				return printJSON(p.out, got)
			}
			apps, err := c.directory(cmd.Context())
			if err != nil {
				return err
			}
			table(p.out, rows(got, apps.byGUID()))
			return nil
		},
	}
}

func (p *program) endpoints() *cobra.Command {
	return listByName(p, "endpoints", "List the containers of all cells", api.PathAllEndpoints,
		func(l api.Endpoints, app func(policy.AppID) api.App) [][]string {
			rows := [][]string{{"address", "app", "instance", "cell", "container", "space", "org"}}
			for _, e := range l.Endpoints {
				a := app(e.App)
				rows = append(rows, []string{e.Address.String(), a.Name, e.Instance, e.Cell, e.Container, a.Space, a.Org})
			}
			return rows
		})
}
