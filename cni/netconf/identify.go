package netconf

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/google/uuid"

	"tulle/policy"
	"tulle/policy/api"
)

// defaultPlace is the space and org of an application named without one, as for
// `tulle run`.
const defaultPlace = "default"

// podName is the argument in which podman and Kubernetes' runtimes give the
// container's name.
const podName = "K8S_POD_NAME"

// Identify finds the container's application and instance. The first that says
// it wins: args (CNI_ARGS, e.g. TULLE_APP=web;TULLE_SPACE=dev), Garden's
// metadata, the runtime's capability "app", the runtime's environment (the same
// names as args; what `TULLE_APP=web podman run` gives), the pattern on the
// container's name (its id where no name is given), the network's own app.
func (c *Conf) Identify(args, id string, env func(string) string) (api.AppRef, string, error) {
	given, err := parseArgs(args)
	if err != nil {
		return api.AppRef{}, "", err
	}
	arg := func(k string) string { return given[k] }
	if app, ok := said(arg); ok {
		return app.AppRef, app.Instance, nil
	}
	app, err := c.found(given, id, env)
	if instance := given["TULLE_INSTANCE"]; instance != "" {
		app.Instance = instance
	}
	return app.AppRef, app.Instance, err
}

// found is what says it beside args.
func (c *Conf) found(given map[string]string, id string, env func(string) string) (App, error) {
	m := c.Metadata
	if guid := cmp.Or(m.PolicyGroupID, m.AppID); guid != "" {
		return App{AppRef: api.AppRef{GUID: guid, Space: m.SpaceID, Org: m.OrgID}}, nil
	}
	if a := c.Runtime.App; a != nil && a.is() {
		return App{a.complete(), a.Instance}, nil
	}
	if app, ok := said(env); ok {
		return app, nil
	}
	name := given[podName]
	if name == "" {
		name = id
	}
	if app, ok, err := Named(c.NamePattern, name); err != nil || ok {
		return app, err
	}
	if a := (App{AppRef: c.App}); a.is() {
		return App{AppRef: a.complete()}, nil
	}
	return App{}, fmt.Errorf(`network %s: nobody says which app container %s is: give CNI_ARGS or the runtime's environment TULLE_APP, or the network a "name_pattern" or an "app"`, c.Name, name)
}

func (a App) is() bool { return a.GUID != "" || a.Name != "" }

// complete drops the name beside a GUID, and fills in space and org beside a name.
func (a App) complete() api.AppRef {
	if a.GUID != "" {
		return api.AppRef{GUID: a.GUID}
	}
	return ref(a.Name, a.Space, a.Org)
}

// Environment is the application that TULLE_APP and its companions name.
func Environment(env func(string) string) (App, bool) { return said(env) }

func said(say func(string) string) (App, bool) {
	name := say("TULLE_APP")
	if name == "" {
		return App{}, false
	}
	return App{ref(name, say("TULLE_SPACE"), say("TULLE_ORG")), say("TULLE_INSTANCE")}, true
}

// Named finds the application in a container's name. false: there is no pattern,
// or it does not fit.
func Named(pattern, name string) (App, bool, error) {
	if pattern == "" {
		return App{}, false, nil
	}
	p, err := regexp.Compile("^(?:" + pattern + ")$")
	if err != nil {
		return App{}, false, fmt.Errorf("name_pattern: %w", err)
	}
	group := map[string]int{}
	for i, g := range p.SubexpNames() {
		if g == "" {
			continue
		}
		if !slices.Contains([]string{"app", "space", "org", "instance"}, g) {
			return App{}, false, fmt.Errorf("name_pattern %q: group %q is none of app, space, org and instance", pattern, g)
		}
		group[g] = i
	}
	if group["app"] == 0 {
		return App{}, false, fmt.Errorf("name_pattern %q has no group (?P<app>…)", pattern)
	}
	m := p.FindStringSubmatch(name)
	if m == nil || m[group["app"]] == "" {
		return App{}, false, nil
	}
	part := func(g string) string {
		if group[g] == 0 {
			return ""
		}
		return m[group[g]]
	}
	return App{ref(part("app"), part("space"), part("org")), part("instance")}, true, nil
}

// ref takes what looks like a GUID for one.
func ref(app, space, org string) api.AppRef {
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
