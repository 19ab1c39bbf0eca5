package foundation

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"tulle/policy/api"
)

const (
	pathUpdated  = "/networking/v1/internal/policies_last_updated"
	pathPolicies = "/networking/v1/internal/policies"
)

// lastUpdated is a number that changes with the policies.
func (c *Client) lastUpdated(ctx context.Context) (at int64, err error) {
	err = c.policies.do(ctx, http.MethodGet, pathUpdated, nil, func(r io.Reader) error {
		b, err := io.ReadAll(io.LimitReader(r, 64))
		if err != nil {
			return err
		}
		at, err = strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		return err
	})
	return at, err
}

// fetch is the policies of some apps, with tags. Without ids the server would send
// all there are.
func (c *Client) fetch(ctx context.Context, ids []string) ([]api.Policy, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	var got api.Policies
	path := pathPolicies + "?" + url.Values{"id": {strings.Join(ids, ",")}}.Encode()
	if err := c.policies.do(ctx, http.MethodGet, path, nil, decode(&got)); err != nil {
		return nil, err
	}
	switch {
	case got.Policies == nil:
		return nil, errors.New("policy server: an answer without policies, not even none")
	case got.Total != len(got.Policies):
		return nil, fmt.Errorf("policy server: %d policies of %d", len(got.Policies), got.Total)
	}
	return got.Policies, nil
}
