package demo

import (
	"context"
	"fmt"
	"net/http"

	"tulle/policy"
	"tulle/policy/api"
)

// Enforce creates a policy between apps by GUID and returns when every cell that
// it concerns has it in force.
func (a *API) Enforce(ctx context.Context, p policy.Policy) error {
	return a.receipted(ctx, api.PathChange, p)
}

// Revoke deletes one and returns when it is in force nowhere.
func (a *API) Revoke(ctx context.Context, p policy.Policy) error {
	return a.receipted(ctx, api.PathChangeDelete, p)
}

func (a *API) receipted(ctx context.Context, path string, p policy.Policy) error {
	var got api.Changed
	if err := a.do(ctx, http.MethodPost, path+"?wait=8s", api.Policies{Policies: []api.Policy{api.FromDomain(p)}}, &got); err != nil {
		return err
	}
	if e := got.Enforced; e == nil || len(e.Late)+len(e.Silent) > 0 {
		return fmt.Errorf("the change %d is not in force everywhere: %+v", got.Revision, e)
	}
	return nil
}
