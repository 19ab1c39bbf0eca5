package cli

import (
	"context"
	"fmt"
	"net/url"
	"slices"

	"github.com/spf13/cobra"

	"tulle/policy/api"
)

// addPolicy is `tulle add-network-policy`.
func (p *program) addPolicy() *cobra.Command {
	var f policyFlags
	cmd := &cobra.Command{
		Use:   "add-network-policy SOURCE_APP DESTINATION_APP [-s DEST_SPACE [-o DEST_ORG]] [--protocol (tcp|udp) --port RANGE]",
		Short: "Let an app reach another one directly",
		Example: `  tulle add-network-policy frontend backend --protocol tcp --port 8081
  tulle add-network-policy frontend backend -s backend-space -o backend-org --protocol tcp --port 8080-8090`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := p.parse(cmd, &f, args)
			if err != nil {
				return err
			}
			given := a.ports != api.Ports{}
			switch {
			case given != (a.protocol != ""):
				return usageError(cmd, "--protocol and --port flags must be specified together")
			case !given:
				a.protocol, a.ports = "tcp", api.Ports{Start: 8080, End: 8080}
			}
			ch, err := p.resolve(cmd.Context(), a, f.space != "")
			if err != nil {
				return err
			}
			p.say("Adding network policy %s...", ch.words)
			if err := ch.client.post(cmd.Context(), api.PathPolicies, ch.body()); err != nil {
				return err
			}
			p.say("OK")
			return p.printChange(ch, nil)
		},
	}
	f.add(cmd)
	return cmd
}

// removePolicy is `tulle remove-network-policy`.
func (p *program) removePolicy() *cobra.Command {
	var f policyFlags
	cmd := &cobra.Command{
		Use:     "remove-network-policy SOURCE_APP DESTINATION_APP [-s DEST_SPACE [-o DEST_ORG]] --protocol (tcp|udp) --port RANGE",
		Short:   "Take a policy away; what runs over it ends at once",
		Example: `  tulle remove-network-policy frontend backend --protocol tcp --port 8081`,
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := p.parse(cmd, &f, args)
			if err != nil {
				return err
			}
			port, protocol := cmd.Flags().Changed("port"), cmd.Flags().Changed("protocol")
			switch {
			case !port && !protocol:
				return usageError(cmd, "the required flags `--port' and `--protocol' were not specified")
			case !port:
				return usageError(cmd, "the required flag `--port' was not specified")
			case !protocol:
				return usageError(cmd, "the required flag `--protocol' was not specified")
			}
			ch, err := p.resolve(cmd.Context(), a, f.space != "")
			if err != nil {
				return err
			}
			p.say("Removing network policy %s...", ch.words)
			removed, err := ch.remove(cmd.Context())
			if err != nil {
				return err
			}
			if !removed {
				p.say("Policy does not exist.")
			}
			p.say("OK")
			return p.printChange(ch, &removed)
		},
	}
	f.add(cmd)
	return cmd
}

// change is one policy between apps that were found.
type change struct {
	client *client
	policy api.Policy
	words  string // "from app A to app B in org O / space S as U"
}

func (c *change) body() api.Policies { return api.Policies{Total: 1, Policies: []api.Policy{c.policy}} }

// remove deletes the policy if it is there, exactly.
func (c *change) remove(ctx context.Context) (bool, error) {
	var there api.Policies
	query := url.Values{"id": {string(c.policy.Source.ID)}}
	if err := c.client.get(ctx, api.PathPolicies, query, &there); err != nil {
		return false, err
	}
	if !slices.Contains(there.Policies, c.policy) {
		return false, nil
	}
	return true, c.client.post(ctx, api.PathDelete, c.body())
}

// resolve finds the apps and the user. apart says that the destination was
// given a space of its own.
func (p *program) resolve(ctx context.Context, a policyArgs, apart bool) (*change, error) {
	c, err := p.client()
	if err != nil {
		return nil, err
	}
	apps, err := c.directory(ctx)
	if err != nil {
		return nil, err
	}
	source, err := apps.find(a.source, a.at)
	if err != nil {
		return nil, err
	}
	destination, err := apps.find(a.destination, a.to)
	if err != nil {
		return nil, err
	}
	user, err := c.user(ctx)
	if err != nil {
		return nil, err
	}
	ch := &change{client: c, policy: api.Policy{
		Source:      api.Source{ID: source.GUID},
		Destination: api.Destination{ID: destination.GUID, Protocol: a.protocol, Ports: a.ports},
	}}
	at, to := placeOf(source), placeOf(destination)
	switch {
	case at == place{} && to == place{}: // neither is registered
		ch.words = fmt.Sprintf("from app %s to app %s as %s", source.Name, destination.Name, user)
	case at == to && !apart:
		ch.words = fmt.Sprintf("from app %s to app %s in %s as %s", source.Name, destination.Name, at, user)
	default:
		ch.words = fmt.Sprintf("from app %s in %s to app %s in %s as %s", source.Name, at, destination.Name, to, user)
	}
	ch.words = printable(ch.words)
	return ch, nil
}

// printChange is the JSON output of a change.
func (p *program) printChange(ch *change, removed *bool) error {
	if p.output != "json" {
		return nil
	}
	return printJSON(p.out, struct {
		Policy  api.Policy `json:"policy"`
		Removed *bool      `json:"removed,omitempty"`
	}{ch.policy, removed})
}
