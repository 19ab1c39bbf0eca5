package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tulle/policy"
	"tulle/policy/api"
)

// Internal routes, in the words of the cf CLI (reference: cf-cli, 1.4).

// routeFlags are those of map-route and unmap-route. The last two are refused, as
// the Cloud Controller does for internal domains.
type routeFlags struct {
	policyFlags
	hostname, path string
	routePort      int
	wait           time.Duration
}

func (f *routeFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVarP(&f.hostname, "hostname", "n", "", "first part of the name")
	flags.StringVar(&f.sourceSpace, "space", "", "space of the app (default: "+envSpace+")")
	flags.StringVar(&f.sourceOrg, "org", "", "org of the app (default: "+envOrg+")")
	flags.DurationVar(&f.wait, "wait", 0, "wait so long until every cell resolves it so")
	flags.StringVar(&f.path, "path", "", "")
	flags.IntVar(&f.routePort, "port", 0, "")
	for _, hidden := range []string{"path", "port"} {
		// Both are there.
		_ = flags.MarkHidden(hidden)
	}
}

// routeArgs is what a command line names.
type routeArgs struct {
	client *client
	app    api.App
	route  policy.Route
	words  string // "route R to app A in org O / space S as U"
	query  url.Values
}

func (p *program) routeArgs(cmd *cobra.Command, f *routeFlags, args []string, link string) (*routeArgs, error) {
	if err := exactArgs(cmd, args, "APP_NAME", "DOMAIN"); err != nil {
		return nil, err
	}
	switch {
	case cmd.Flags().Changed("path"):
		//lint:ignore ST1005 the original's text
		return nil, errors.New("Paths are not supported for internal domains.")
	case cmd.Flags().Changed("port"):
		return nil, errors.New("internal domains have no ports: a name stands for addresses, and any port that a policy allows can be reached")
	case f.hostname == "":
		return nil, usageError(cmd, "the required flag `--hostname' was not specified")
	case f.wait < 0 || f.wait > api.MaxWait:
		return nil, usageError(cmd, "--wait must be from 0s to %s", api.MaxWait)
	}
	name, err := policy.ParseHostname(f.hostname + "." + args[1])
	if err != nil {
		return nil, err
	}
	if host, _ := name.Split(); !strings.EqualFold(host, f.hostname) {
		return nil, fmt.Errorf("hostname %q: must have no dot", f.hostname)
	}
	c, err := p.client()
	if err != nil {
		return nil, err
	}
	apps, err := c.directory(cmd.Context())
	if err != nil {
		return nil, err
	}
	app, err := apps.find(args[0], p.target(&f.policyFlags))
	if err != nil {
		return nil, err
	}
	user, err := c.user(cmd.Context())
	if err != nil {
		return nil, err
	}
	a := &routeArgs{client: c, app: app, route: policy.Route{Name: name, App: app.GUID}, query: url.Values{}}
	a.words = fmt.Sprintf("route %s %s app %s", name, link, app.Name)
	if at := placeOf(app); at != (place{}) {
		a.words += " in " + at.String()
	}
	a.words = printable(a.words + " as " + user)
	if f.wait > 0 {
		a.query.Set("wait", f.wait.String())
		c.http.Timeout += f.wait
	}
	return a, nil
}

// mapped reports whether the app has the name.
func (a *routeArgs) mapped(ctx context.Context) (bool, error) {
	var there api.Routes
	err := a.client.get(ctx, api.PathRoutes, url.Values{"app": {string(a.app.GUID)}, "name": {string(a.route.Name)}}, &there)
	return len(there.Routes) > 0, err
}

func (a *routeArgs) send(ctx context.Context, path string) (api.Changed, error) {
	return a.client.change(ctx, http.MethodPost, path, a.query, api.RoutesRequest{Routes: []policy.Route{a.route}})
}

// change sends a change that is answered with its revision.
func (c *client) change(ctx context.Context, method, path string, query url.Values, body any) (changed api.Changed, err error) {
	var b []byte
	if body != nil {
		if b, err = json.Marshal(body); err != nil {
			return changed, err
		}
	}
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	return changed, c.do(ctx, method, path, b, &changed)
}

// mapRoute is `tulle map-route`.
func (p *program) mapRoute() *cobra.Command {
	var f routeFlags
	cmd := &cobra.Command{
		Use:   "map-route APP_NAME DOMAIN --hostname HOSTNAME",
		Short: "Give an app a name that containers can resolve",
		Long: `Gives an app an internal name: containers that ask for it get the addresses of the
app's live instances. Several apps may have one name, and an app several. Whether
they can be reached is a matter of network policies.`,
		Example: `  tulle map-route backend apps.internal --hostname backend`,
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := p.routeArgs(cmd, &f, args, "to")
			if err != nil {
				return err
			}
			p.say("Mapping %s...", a.words)
			already, err := a.mapped(cmd.Context())
			if err != nil {
				return err
			}
			if already {
				p.say("App '%s' is already mapped to route '%s'. Nothing has been updated.", printable(a.app.Name), a.route.Name)
			}
			changed, err := a.send(cmd.Context(), api.PathRoutes)
			return p.told(a, changed, err)
		},
	}
	f.add(cmd)
	return cmd
}

// unmapRoute is `tulle unmap-route`.
func (p *program) unmapRoute() *cobra.Command {
	var f routeFlags
	cmd := &cobra.Command{
		Use:     "unmap-route APP_NAME DOMAIN --hostname HOSTNAME",
		Short:   "Take a name from an app",
		Example: `  tulle unmap-route backend apps.internal --hostname backend`,
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := p.routeArgs(cmd, &f, args, "from")
			if err != nil {
				return err
			}
			p.say("Removing %s...", a.words)
			there, err := a.mapped(cmd.Context())
			if err != nil {
				return err
			}
			if !there {
				p.say("Route to be unmapped is not currently mapped to the application.")
			}
			changed, err := a.send(cmd.Context(), api.PathRoutesDelete)
			return p.told(a, changed, err)
		},
	}
	f.add(cmd)
	return cmd
}

// told ends a change of one route.
func (p *program) told(a *routeArgs, changed api.Changed, err error) error {
	if err != nil {
		return err
	}
	if e := changed.Enforced; e != nil {
		p.say("On %s cells.", e.Cells)
	}
	p.say("OK")
	if p.output != "json" {
		return nil
	}
	return printJSON(p.out, struct {
		Route policy.Route `json:"route"`
		api.Changed
	}{a.route, changed})
}

// routes lists what names stand for.
func (p *program) routes() *cobra.Command {
	return listByName(p, "routes", "List the internal names, and the apps and addresses they stand for", api.PathRoutes,
		func(l api.Routes, app func(policy.AppID) api.App) [][]string {
			rows := [][]string{{"name", "app", "space", "org", "instances"}}
			for _, r := range l.Routes {
				if r.App == "" { // registered over NATS
					rows = append(rows, []string{string(r.Name), "", "", "", r.Address.String()})
					continue
				}
				a := app(r.App)
				rows = append(rows, []string{string(r.Name), a.Name, a.Space, a.Org, fmt.Sprint(a.Instances)})
			}
			return rows
		})
}

// domains lists the internal domains.
func (p *program) domains() *cobra.Command {
	return list(p, "domains", "List the internal domains", api.PathDomains, func(l api.Domains) [][]string {
		rows := [][]string{{"name"}}
		for _, d := range l.Domains {
			rows = append(rows, []string{string(d)})
		}
		return rows
	})
}

// createDomain and deleteDomain change which domains are internal.
func (p *program) createDomain() *cobra.Command {
	return p.domainChange("create-domain", "Make a domain internal: containers resolve names in it", "Creating", http.MethodPut)
}

func (p *program) deleteDomain() *cobra.Command {
	return p.domainChange("delete-domain", "Let a domain be internal no more", "Deleting", http.MethodDelete)
}

func (p *program) domainChange(name, short, doing, method string) *cobra.Command {
	return &cobra.Command{
		Use: name + " DOMAIN", Short: short, Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := exactArgs(cmd, args, "DOMAIN"); err != nil {
				return err
			}
			domain, err := policy.ParseDomain(args[0])
			if err != nil {
				return err
			}
			c, err := p.client()
			if err != nil {
				return err
			}
			p.say("%s internal domain %s...", doing, domain)
			changed, err := c.change(cmd.Context(), method, strings.Replace(api.PathDomain, "{domain}", url.PathEscape(string(domain)), 1), nil, nil)
			if err != nil {
				return err
			}
			p.say("OK")
			return p.print(changed, func(io.Writer) {})
		},
	}
}
