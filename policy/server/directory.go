package server

import (
	"context"
	"net/http"

	"tulle/policy"
	"tulle/policy/auth"
)

// Directory knows which apps there are, in which spaces, and who develops them;
// a Cloud Controller does, by package cc. Safe for concurrent use. An error is
// no answer: nothing is allowed, shown or deleted for it.
type Directory interface {
	// Apps maps those of the apps that exist to their spaces.
	Apps(ctx context.Context, ids []policy.AppID) (map[policy.AppID]string, error)
	// DeveloperSpaces are, of the given spaces or, with nil, of all, those in
	// which the subject of an identity is a developer.
	DeveloperSpaces(ctx context.Context, subject string, of []string) (map[string]bool, error)
	// SeesAll is an error where an app that Apps does not find may still exist.
	SeesAll(ctx context.Context) error
}

// seesAll reports whether no app is kept from the caller.
func (s *Server) seesAll(who auth.Identity) bool {
	return who.IsAdmin() || s.options.Directory == nil && who.Spaces == nil
}

// directoryOf is who knows what the caller, who does not see all, may name.
func (s *Server) directoryOf(who auth.Identity) Directory {
	if s.options.Directory != nil {
		return s.options.Directory
	}
	return registry{s.store, who.Spaces}
}

// checkAccess lets a space developer change policies between apps of their
// spaces only. An app that the directory does not know is refused like one of
// another space; the original looks only at apps that are known.
func (s *Server) checkAccess(ctx context.Context, who auth.Identity, ps []policy.Policy) error {
	if s.seesAll(who) {
		return nil
	}
	apps := appsOf(ps)
	known, err := s.directoryOf(who).Apps(ctx, apps)
	if err != nil {
		return refuse(http.StatusInternalServerError, "check access failed", err)
	}
	denied := refuse(http.StatusForbidden, "one or more applications cannot be found or accessed", nil)
	var spaces []string
	seen := map[string]bool{}
	for _, app := range apps {
		space, ok := known[app]
		if !ok {
			return denied
		}
		if !seen[space] {
			seen[space] = true
			spaces = append(spaces, space)
		}
	}
	developed, err := s.directoryOf(who).DeveloperSpaces(ctx, who.Subject, spaces)
	if err != nil {
		return refuse(http.StatusInternalServerError, "check access failed", err)
	}
	for _, space := range spaces {
		if !developed[space] {
			return denied
		}
	}
	return nil
}

// visible says of the apps which ones the caller may see: an admin all, a space
// developer those of their spaces.
func (s *Server) visible(ctx context.Context, who auth.Identity, apps []policy.AppID) (func(policy.AppID) bool, error) {
	if s.seesAll(who) {
		return func(policy.AppID) bool { return true }, nil
	}
	none := func(policy.AppID) bool { return false }
	if len(apps) == 0 {
		return none, nil
	}
	spaces, err := s.directoryOf(who).DeveloperSpaces(ctx, who.Subject, nil)
	if err != nil || len(spaces) == 0 {
		return none, err
	}
	known, err := s.directoryOf(who).Apps(ctx, apps)
	if err != nil {
		return none, err
	}
	return func(app policy.AppID) bool {
		space, ok := known[app]
		return ok && spaces[space]
	}, nil
}

// filterPolicies keeps the policies of which the caller may see both apps.
func (s *Server) filterPolicies(ctx context.Context, who auth.Identity, ps []policy.Policy) ([]policy.Policy, error) {
	if s.seesAll(who) {
		return ps, nil
	}
	see, err := s.visible(ctx, who, appsOf(ps))
	if err != nil {
		return nil, refuse(http.StatusInternalServerError, "filter policies failed", err)
	}
	var kept []policy.Policy
	for _, p := range ps {
		if see(p.Source) && see(p.Destination) {
			kept = append(kept, p)
		}
	}
	return kept, nil
}

// appsOf are the apps of the policies, each once, in order.
func appsOf(ps []policy.Policy) []policy.AppID {
	var apps []policy.AppID
	seen := map[policy.AppID]bool{}
	for _, p := range ps {
		for _, app := range []policy.AppID{p.Source, p.Destination} {
			if !seen[app] {
				seen[app] = true
				apps = append(apps, app)
			}
		}
	}
	return apps
}
