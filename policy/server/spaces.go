package server

import (
	"context"
	"net/http"
	"slices"

	"tulle/policy"
	"tulle/policy/auth"
	"tulle/policy/store"
)

// registry is the Directory of who is limited to spaces where there is no Cloud
// Controller: the apps that cells have registered, and the spaces of the token.
type registry struct {
	store  store.Store
	spaces []string // ORG/SPACE or a space's GUID
}

var _ Directory = registry{}

// Apps maps registered apps to the GUID of their space. One that is known by its
// GUID alone is in none, and so nobody's.
func (r registry) Apps(ctx context.Context, ids []policy.AppID) (map[policy.AppID]string, error) {
	list, err := r.store.Apps(ctx)
	if err != nil {
		return nil, err
	}
	asked := make(map[policy.AppID]bool, len(ids))
	for _, id := range ids {
		asked[id] = true
	}
	found := make(map[policy.AppID]string)
	for _, a := range list {
		if asked[a.GUID] && a.SpaceGUID != "" {
			found[a.GUID] = a.SpaceGUID
		}
	}
	return found, nil
}

// DeveloperSpaces are the token's, by their GUIDs.
func (r registry) DeveloperSpaces(ctx context.Context, _ string, of []string) (map[string]bool, error) {
	list, err := r.store.Apps(ctx)
	if err != nil {
		return nil, err
	}
	spaces := make(map[string]bool)
	for _, a := range list {
		if a.SpaceGUID != "" && (of == nil || slices.Contains(of, a.SpaceGUID)) && inSpaces(r.spaces, a.Org, a.Space, a.SpaceGUID) {
			spaces[a.SpaceGUID] = true
		}
	}
	return spaces, nil
}

// SeesAll is never asked: where no Cloud Controller says which apps are gone,
// nothing is cleaned up.
func (r registry) SeesAll(context.Context) error { return nil }

// inSpaces reports whether a space is one of the list.
func inSpaces(spaces []string, org, space, guid string) bool {
	return slices.Contains(spaces, org+"/"+space) || guid != "" && slices.Contains(spaces, guid)
}

// unlimited refuses what concerns no single space.
func unlimited(who auth.Identity, what string) error {
	if who.Spaces == nil || who.IsAdmin() {
		return nil
	}
	return refuse(http.StatusForbidden, "a token that is limited to spaces may not "+what, nil)
}
