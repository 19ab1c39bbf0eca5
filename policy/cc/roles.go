package cc

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// spaceDeveloper is the one role that counts; auditors, supporters and managers
// of a space change no policies of its apps.
const spaceDeveloper = "space_developer"

// maxPerPage is the longest page that the API v3 gives.
const maxPerPage = 5000

// DeveloperSpaces are the spaces in which the user is a developer: of those
// given, or, with nil, of all. The user is named by the guid that both the UAA
// and the Cloud Controller know; "" is nobody.
func (c *Client) DeveloperSpaces(ctx context.Context, user string, of []string) (map[string]bool, error) {
	spaces := make(map[string]bool)
	// A list of users would give the roles of each of them.
	if user == "" || strings.Contains(user, ",") {
		return spaces, nil
	}
	query := url.Values{"types": {spaceDeveloper}, "user_guids": {user}, "per_page": {strconv.Itoa(maxPerPage)}}
	if of == nil {
		return spaces, c.addRoles(ctx, query, user, nil, spaces)
	}
	for _, chunk := range chunks(of) {
		query.Set("space_guids", strings.Join(chunk, ","))
		query.Set("per_page", strconv.Itoa(len(chunk)))
		if err := c.addRoles(ctx, query, user, chunk, spaces); err != nil {
			return nil, err
		}
	}
	return spaces, nil
}

// addRoles puts the spaces of a list of roles into spaces. That each is what was
// asked for is looked at, since what is granted here is granted in our name.
func (c *Client) addRoles(ctx context.Context, query url.Values, user string, of []string, spaces map[string]bool) error {
	err := list(ctx, c, "/v3/roles", query, func(r role) error {
		space := r.Relationships.Space.guid()
		if r.Type != spaceDeveloper || r.Relationships.User.guid() != user || space == "" || of != nil && !slices.Contains(of, space) {
			return fmt.Errorf("it holds a role %q of user %q in space %q, which was not asked for", r.Type, r.Relationships.User.guid(), space)
		}
		spaces[space] = true
		return nil
	})
	if err != nil {
		return fmt.Errorf("look up roles: %w", err)
	}
	return nil
}
