// Package netconf is the plugin's configuration as a runtime hands it over on
// standard input, and how a container's application is found in it. It decodes
// and decides; it opens nothing.
package netconf

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/google/uuid"

	"tulle/overlay/control"
	"tulle/policy"
	"tulle/policy/api"
)

// Conf is a network's configuration. Keys that are not ours belong to the
// runtime or to other plugins and are left alone.
type Conf struct {
	types.PluginConf

	// Socket of the cell daemon; control.DefaultSocket when empty.
	Socket string `json:"socket,omitempty"`
	// App is the application of every container of the network that does not say
	// its own.
	App api.AppRef `json:"app"`
	// Metadata is what Garden's runtime says about the container.
	Metadata Metadata `json:"metadata"`
}

// Metadata are the properties of a container that name its application.
// policy_group_id is the one that policies are written in; both are the app's
// GUID in every Cloud Foundry.
type Metadata struct {
	AppID         policy.AppID `json:"app_id"`
	PolicyGroupID policy.AppID `json:"policy_group_id"`
}

// Parse decodes a configuration and the result of the plugin before, if any.
func Parse(b []byte) (*Conf, error) {
	c := &Conf{}
	if err := json.Unmarshal(b, c); err != nil {
		return nil, fmt.Errorf("network configuration: %w", err)
	}
	if err := version.ParsePrevResult(&c.PluginConf); err != nil {
		return nil, err
	}
	if c.Socket == "" {
		c.Socket = control.DefaultSocket()
	}
	return c, nil
}

// defaultPlace is the space and org of an application named without one, as for
// `tulle run`.
const defaultPlace = "default"

// Identify finds the container's application and instance. The first that says
// it wins: args (CNI_ARGS, e.g. TULLE_APP=web;TULLE_SPACE=dev), the runtime's
// environment (same names; what `TULLE_APP=web podman run` gives), the runtime's
// metadata, the network's own app.
func (c *Conf) Identify(args string, env func(string) string) (api.AppRef, string, error) {
	given, err := parseArgs(args)
	if err != nil {
		return api.AppRef{}, "", err
	}
	for _, say := range []func(string) string{func(k string) string { return given[k] }, env} {
		if app := say("TULLE_APP"); app != "" {
			return named(app, say("TULLE_SPACE"), say("TULLE_ORG")), say("TULLE_INSTANCE"), nil
		}
	}
	instance := given["TULLE_INSTANCE"]
	switch m := c.Metadata; {
	case m.PolicyGroupID != "":
		return api.AppRef{GUID: m.PolicyGroupID}, instance, nil
	case m.AppID != "":
		return api.AppRef{GUID: m.AppID}, instance, nil
	case c.App.GUID != "":
		return api.AppRef{GUID: c.App.GUID}, instance, nil
	case c.App.Name != "":
		return named(c.App.Name, c.App.Space, c.App.Org), instance, nil
	}
	return api.AppRef{}, "", fmt.Errorf(`network %s: nobody says which app the container is: give CNI_ARGS or the environment TULLE_APP, or the network an "app"`, c.Name)
}

// named takes what looks like a GUID for one.
func named(app, space, org string) api.AppRef {
	if _, err := uuid.Parse(app); err == nil {
		return api.AppRef{GUID: policy.AppID(app)}
	}
	if space == "" {
		space = defaultPlace
	}
	if org == "" {
		org = defaultPlace
	}
	return api.AppRef{Name: app, Space: space, Org: org}
}

// parseArgs reads "K=V;K2=V2". Keys of others (K8S_POD_NAME, IgnoreUnknown) are
// no fault.
func parseArgs(args string) (map[string]string, error) {
	m := map[string]string{}
	for pair := range strings.SplitSeq(args, ";") {
		if pair == "" {
			continue
		}
		k, v, ok := strings.Cut(pair, "=")
		if !ok {
			return nil, fmt.Errorf("CNI_ARGS: %q is not KEY=VALUE", pair)
		}
		m[k] = v
	}
	return m, nil
}
