package cli

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"tulle/policy"
	"tulle/policy/api"
)

// apps is `tulle apps`, with what changes the registry beneath it.
func (p *program) apps() *cobra.Command {
	cmd := list(p, "apps", "List the apps that cells have registered", api.PathApps, func(l api.Apps) [][]string {
		rows := [][]string{{"name", "instances", "space", "org", "guid"}}
		for _, a := range l.Apps {
			rows = append(rows, []string{a.Name, strconv.Itoa(a.Instances), a.Space, a.Org, string(a.GUID)})
		}
		return rows
	})
	cmd.AddCommand(p.addApp(), p.removeApp())
	return cmd
}

func (p *program) addApp() *cobra.Command {
	var ref api.AppRef
	var guid string
	cmd := &cobra.Command{
		Use:   "add NAME [--space SPACE] [--org ORG] [--guid GUID]",
		Short: "Enter an app, so that policies can name it before its first container",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := exactArgs(cmd, args, "NAME"); err != nil {
				return err
			}
			c, err := p.client()
			if err != nil {
				return err
			}
			ref.Name, ref.GUID = args[0], policy.AppID(guid)
			ref.Space, ref.Org = first(ref.Space, p.env(envSpace)), first(ref.Org, p.env(envOrg))
			body, err := json.Marshal(ref)
			if err != nil {
				return err
			}
			var got api.Registered
			if err := c.do(cmd.Context(), http.MethodPost, api.PathApps, body, &got); err != nil {
				return err
			}
			return p.print(got, func(w io.Writer) { _, _ = io.WriteString(w, string(got.GUID)+"\n") })
		},
	}
	cmd.Flags().StringVar(&ref.Space, "space", "", `its space (default: TULLE_SPACE, else "default")`)
	cmd.Flags().StringVar(&ref.Org, "org", "", `its org (default: TULLE_ORG, else "default")`)
	cmd.Flags().StringVar(&guid, "guid", "", "its GUID (default: the server makes one)")
	return cmd
}

func (p *program) removeApp() *cobra.Command {
	var at place
	cmd := &cobra.Command{
		Use:   "remove APP [--space SPACE] [--org ORG]",
		Short: "Forget an app that has no containers, policies and routes; APP is its name or GUID",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := exactArgs(cmd, args, "APP"); err != nil {
				return err
			}
			c, err := p.client()
			if err != nil {
				return err
			}
			apps, err := c.directory(cmd.Context())
			if err != nil {
				return err
			}
			app, err := apps.find(args[0], place{first(at.space, p.env(envSpace)), first(at.org, p.env(envOrg))})
			if err != nil {
				return err
			}
			path := strings.Replace(api.PathApp, "{guid}", url.PathEscape(string(app.GUID)), 1)
			if err := c.do(cmd.Context(), http.MethodDelete, path, nil, nil); err != nil {
				return err
			}
			p.say("OK")
			return nil
		},
	}
	cmd.Flags().StringVar(&at.space, "space", "", "its space (default: TULLE_SPACE, else any)")
	cmd.Flags().StringVar(&at.org, "org", "", "its org (default: TULLE_ORG, else any)")
	return cmd
}
