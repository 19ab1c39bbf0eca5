package cli

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"tulle/policy"
	"tulle/policy/api"
)

// listedPolicy is a policy with its apps' names.
type listedPolicy struct {
	Source      listedApp         `json:"source"`
	Destination listedDestination `json:"destination"`
}

type listedApp struct {
	ID    policy.AppID `json:"id"`
	Name  string       `json:"name,omitempty"`
	Space string       `json:"space,omitempty"`
	Org   string       `json:"org,omitempty"`
}

type listedDestination struct {
	listedApp
	Protocol string    `json:"protocol"`
	Ports    api.Ports `json:"ports"`
}

// listPolicies is `tulle network-policies`.
func (p *program) listPolicies() *cobra.Command {
	var (
		f      policyFlags
		source string
	)
	cmd := &cobra.Command{
		Use:   "network-policies [--source SOURCE_APP]",
		Short: "List the policies between apps",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := exactArgs(cmd, args); err != nil {
				return err
			}
			at := p.target(&f)
			c, err := p.client()
			if err != nil {
				return err
			}
			apps, err := c.directory(cmd.Context())
			if err != nil {
				return err
			}
			of := ""
			var only policy.AppID
			if source != "" {
				app, err := apps.find(source, at)
				if err != nil {
					return err
				}
				of, only, at = " of app "+app.Name, app.GUID, placeOf(app)
			}
			user, err := c.user(cmd.Context())
			if err != nil {
				return err
			}
			if at != (place{}) {
				of += " in " + at.String()
			}
			p.say("Listing network policies%s as %s...\n", printable(of), printable(user))
			list, err := c.policies(cmd.Context(), apps, at, only)
			if err != nil {
				return err
			}
			return p.print(map[string][]listedPolicy{"policies": list}, func(w io.Writer) { policyTable(w, list) })
		},
	}
	f.addSource(cmd)
	cmd.Flags().StringVar(&source, "source", "", "only policies of this source app")
	return cmd
}

// policies are those whose source is only, or lies in the place; in the server's
// order.
func (c *client) policies(ctx context.Context, apps directory, at place, only policy.AppID) ([]listedPolicy, error) {
	query := url.Values{}
	if only != "" {
		query.Set("source_id", string(only))
	}
	var got api.Policies
	if err := c.get(ctx, api.PathPolicies, query, &got); err != nil {
		return nil, err
	}
	app := apps.byGUID()
	list := []listedPolicy{}
	for _, g := range got.Policies {
		source, destination := app(g.Source.ID), app(g.Destination.ID)
		if only != "" && source.GUID != only || only == "" && !at.holds(source) {
			continue
		}
		list = append(list, listedPolicy{listed(source), listedDestination{listed(destination), g.Destination.Protocol, g.Destination.Ports}})
	}
	return list, nil
}

func listed(a api.App) listedApp { return listedApp{a.GUID, a.Name, a.Space, a.Org} }

func policyTable(w io.Writer, list []listedPolicy) {
	rows := [][]string{{"source", "destination", "protocol", "ports", "destination space", "destination org"}}
	for _, l := range list {
		d := l.Destination
		ports := strconv.Itoa(d.Ports.Start)
		if d.Ports.End != d.Ports.Start {
			ports = fmt.Sprintf("%d-%d", d.Ports.Start, d.Ports.End)
		}
		rows = append(rows, []string{l.Source.Name, d.Name, strings.ToLower(d.Protocol), ports, d.Space, d.Org})
	}
	table(w, rows)
}
