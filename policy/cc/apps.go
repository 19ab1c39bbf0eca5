package cc

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"tulle/policy"
)

// Bounds of one request's list of guids: as many as the original asks for, and
// no longer than any server takes in an address.
const (
	chunkGUIDs = 100
	chunkBytes = 6000
)

// maxGUID is the longest guid that a Cloud Controller can hold, in bytes.
const maxGUID = 255

// Apps maps those of the apps that exist to the guids of their spaces.
func (c *Client) Apps(ctx context.Context, ids []policy.AppID) (map[policy.AppID]string, error) {
	guids := make([]string, len(ids))
	for i, id := range ids {
		guids[i] = string(id)
	}
	spaces := make(map[policy.AppID]string, len(ids))
	for _, chunk := range chunks(guids) {
		query := url.Values{"guids": {strings.Join(chunk, ",")}, "per_page": {strconv.Itoa(len(chunk))}}
		err := list(ctx, c, "/v3/apps", query, func(a app) error {
			space := a.space()
			if a.GUID == "" || space == "" {
				return fmt.Errorf("app %q is in space %q", a.GUID, space)
			}
			spaces[policy.AppID(a.GUID)] = space
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("look up apps: %w", err)
		}
	}
	return spaces, nil
}

// The scopes that see every app; without one of them a Cloud Controller leaves
// out what its caller may not see, and says nothing.
var seeAll = []string{"cloud_controller.admin", "cloud_controller.admin_read_only", "cloud_controller.global_auditor"}

// SeesAll is nil if an app that Apps does not find does not exist; an error if
// it may just not be shown to the server's client.
func (c *Client) SeesAll(ctx context.Context) error {
	scopes, err := c.tokens.Scopes(ctx)
	if err != nil {
		return err
	}
	if scopes != nil && !slices.ContainsFunc(scopes, func(s string) bool { return slices.Contains(seeAll, s) }) {
		return fmt.Errorf("the server's client has the authorities %v, of which none sees every app; one of %v is needed", scopes, seeAll)
	}
	return nil
}

// chunks splits guids for one request each, in order and each once. What cannot
// be a guid is left out: a list cannot hold it, and nobody has it.
func chunks(guids []string) [][]string {
	var all [][]string
	var chunk []string
	size := 0
	seen := make(map[string]bool, len(guids))
	for _, g := range guids {
		if seen[g] || g == "" || len(g) > maxGUID || strings.ContainsFunc(g, func(r rune) bool { return r == ',' || r <= ' ' || r == 0x7f }) {
			continue
		}
		seen[g] = true
		n := len(url.QueryEscape(g)) + len("%2C")
		if len(chunk) == chunkGUIDs || len(chunk) > 0 && size+n > chunkBytes {
			all = append(all, chunk)
			chunk, size = nil, 0
		}
		chunk = append(chunk, g)
		size += n
	}
	if len(chunk) > 0 {
		all = append(all, chunk)
	}
	return all
}
