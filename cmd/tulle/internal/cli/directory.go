package cli

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"tulle/policy"
	"tulle/policy/api"
)

// place is a space and its org; an empty field is any.
type place struct{ space, org string }

func (p place) holds(a api.App) bool {
	return (p.space == "" || p.space == a.Space || p.space == a.SpaceGUID) &&
		(p.org == "" || p.org == a.Org || p.org == a.OrgGUID)
}

func (p place) String() string { return fmt.Sprintf("org %s / space %s", p.org, p.space) }

// placeOf is where a registered app is.
func placeOf(a api.App) place { return place{a.Space, a.Org} }

// directory is the registry's list of apps.
type directory []api.App

func (c *client) directory(ctx context.Context) (directory, error) {
	var got api.Apps
	err := c.get(ctx, api.PathApps, nil, &got)
	return got.Apps, err
}

var guid = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

// find is the app with that GUID, or the one app of that name in the place. What
// has the form of a GUID stands for itself where nobody has registered it: a
// policy may be there before its apps, and a foreign cell registers none.
func (d directory) find(name string, in place) (api.App, error) {
	var named []api.App
	for _, a := range d {
		if string(a.GUID) == name {
			return a, nil
		}
		if a.Name == name && in.holds(a) {
			named = append(named, a)
		}
	}
	switch {
	case len(named) == 1:
		return named[0], nil
	case len(named) > 1:
		return api.App{}, &appError{name, named}
	case guid.MatchString(name):
		return api.App{GUID: policy.AppID(name), Name: name}, nil
	}
	return api.App{}, &appError{name: name}
}

// appError is a name that is not one app's; candidates are those it could be.
type appError struct {
	name       string
	candidates []api.App
}

func (e *appError) Error() string {
	if len(e.candidates) == 0 {
		return fmt.Sprintf("App '%s' not found", e.name) // the cf CLI's text
	}
	lines := []string{fmt.Sprintf("App '%s' is ambiguous, name its space and org or its GUID:", e.name)}
	for _, a := range e.candidates {
		lines = append(lines, fmt.Sprintf("  %s  %s", a.GUID, printable(placeOf(a).String())))
	}
	return strings.Join(lines, "\n")
}

// byGUID is the app with that GUID; an unknown one has no name but it.
func (d directory) byGUID() func(policy.AppID) api.App {
	index := make(map[policy.AppID]api.App, len(d))
	for _, a := range d {
		index[a.GUID] = a
	}
	return func(id policy.AppID) api.App {
		if a, ok := index[id]; ok {
			return a
		}
		return api.App{GUID: id, Name: string(id)}
	}
}
