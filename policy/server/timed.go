package server

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

// timedStore tells a meter how long the operations of a store take.
type timedStore struct {
	store.Store // what is not timed: Epoch, Changed, Close
	meter       Meter
}

func observe[T any](t *timedStore, operation string, f func() (T, error)) (T, error) {
	start := time.Now()
	v, err := f()
	result := "ok"
	switch {
	case err == nil:
	case errors.Is(err, store.ErrConflict), errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrNoLease), errors.Is(err, store.ErrNotYours),
		errors.Is(err, store.ErrCompacted), errors.Is(err, store.ErrTagsExhausted),
		errors.Is(err, store.ErrLeaseMismatch), errors.Is(err, store.ErrNotInPool), errors.Is(err, store.ErrSubnetTaken), errors.Is(err, store.ErrRevoked), errors.Is(err, context.Canceled):
		result = "refused"
	default:
		result = "error"
	}
	t.meter.Operation(operation, result, time.Since(start))
	return v, err
}

// nothing is for operations that return only an error.
type nothing struct{}

func (t *timedStore) State(ctx context.Context) (*store.State, error) {
	return observe(t, "state", func() (*store.State, error) { return t.Store.State(ctx) })
}

func (t *timedStore) Changes(ctx context.Context, after api.Revision, limit int) ([]api.Delta, error) {
	return observe(t, "changes", func() ([]api.Delta, error) { return t.Store.Changes(ctx, after, limit) })
}

func (t *timedStore) AddPolicies(ctx context.Context, ps []policy.Policy) (api.Revision, error) {
	return observe(t, "add_policies", func() (api.Revision, error) { return t.Store.AddPolicies(ctx, ps) })
}

func (t *timedStore) RemovePolicies(ctx context.Context, ps []policy.Policy) (api.Revision, error) {
	return observe(t, "remove_policies", func() (api.Revision, error) { return t.Store.RemovePolicies(ctx, ps) })
}

func (t *timedStore) Policies(ctx context.Context, f store.Filter) ([]policy.Policy, error) {
	return observe(t, "policies", func() ([]policy.Policy, error) { return t.Store.Policies(ctx, f) })
}

func (t *timedStore) Tags(ctx context.Context) ([]api.AppTag, error) {
	return observe(t, "tags", func() ([]api.AppTag, error) { return t.Store.Tags(ctx) })
}

func (t *timedStore) Tag(ctx context.Context, id policy.AppID, kind string) (api.AppTag, error) {
	return observe(t, "tag", func() (api.AppTag, error) { return t.Store.Tag(ctx, id, kind) })
}

func (t *timedStore) LastUpdated(ctx context.Context) (time.Time, error) {
	return observe(t, "last_updated", func() (time.Time, error) { return t.Store.LastUpdated(ctx) })
}

func (t *timedStore) Lease(ctx context.Context, cell string, r api.LeaseRequest) (api.Lease, error) {
	return observe(t, "lease", func() (api.Lease, error) { return t.Store.Lease(ctx, cell, r) })
}

func (t *timedStore) PutSecrets(ctx context.Context, cell string, r api.SecretsRequest) error {
	_, err := observe(t, "put_secrets", func() (nothing, error) { return nothing{}, t.Store.PutSecrets(ctx, cell, r) })
	return err
}

func (t *timedStore) ReleaseLease(ctx context.Context, cell string) error {
	_, err := observe(t, "release_lease", func() (nothing, error) { return nothing{}, t.Store.ReleaseLease(ctx, cell) })
	return err
}

func (t *timedStore) Expire(ctx context.Context) (time.Time, error) {
	return observe(t, "expire", func() (time.Time, error) { return t.Store.Expire(ctx) })
}

func (t *timedStore) AddPeer(ctx context.Context, p api.Peer) error {
	_, err := observe(t, "add_peer", func() (nothing, error) { return nothing{}, t.Store.AddPeer(ctx, p) })
	return err
}

func (t *timedStore) RemovePeer(ctx context.Context, name string) error {
	_, err := observe(t, "remove_peer", func() (nothing, error) { return nothing{}, t.Store.RemovePeer(ctx, name) })
	return err
}

func (t *timedStore) Cells(ctx context.Context) ([]store.Cell, error) {
	return observe(t, "cells", func() ([]store.Cell, error) { return t.Store.Cells(ctx) })
}

func (t *timedStore) SetEndpoints(ctx context.Context, cell string, r api.EndpointsRequest) (api.EndpointsResponse, error) {
	return observe(t, "set_endpoints", func() (api.EndpointsResponse, error) { return t.Store.SetEndpoints(ctx, cell, r) })
}

func (t *timedStore) Endpoints(ctx context.Context) (api.Endpoints, error) {
	return observe(t, "endpoints", func() (api.Endpoints, error) { return t.Store.Endpoints(ctx) })
}

func (t *timedStore) Apps(ctx context.Context) ([]store.App, error) {
	return observe(t, "apps", func() ([]store.App, error) { return t.Store.Apps(ctx) })
}

func (t *timedStore) Audit(ctx context.Context, before uint64, limit int) ([]api.AuditEntry, error) {
	return observe(t, "audit", func() ([]api.AuditEntry, error) { return t.Store.Audit(ctx, before, limit) })
}

func (t *timedStore) Export(ctx context.Context) (*store.Backup, error) {
	return observe(t, "export", func() (*store.Backup, error) { return t.Store.Export(ctx) })
}

func (t *timedStore) Import(ctx context.Context, b *store.Backup) error {
	_, err := observe(t, "import", func() (nothing, error) { return nothing{}, t.Store.Import(ctx, b) })
	return err
}

func (t *timedStore) Stats(ctx context.Context) (store.Stats, error) {
	return observe(t, "stats", func() (store.Stats, error) { return t.Store.Stats(ctx) })
}

func (t *timedStore) Ping(ctx context.Context) error {
	_, err := observe(t, "ping", func() (nothing, error) { return nothing{}, t.Store.Ping(ctx) })
	return err
}

func (t *timedStore) SilkLeases(ctx context.Context) ([]store.SilkLease, error) {
	return observe(t, "silk_leases", func() ([]store.SilkLease, error) { return t.Store.SilkLeases(ctx) })
}

func (t *timedStore) AcquireSilk(ctx context.Context, underlay netip.Addr, single bool) (store.SilkLease, error) {
	return observe(t, "acquire_silk", func() (store.SilkLease, error) { return t.Store.AcquireSilk(ctx, underlay, single) })
}

func (t *timedStore) RenewSilk(ctx context.Context, l store.SilkLease) error {
	_, err := observe(t, "renew_silk", func() (nothing, error) { return nothing{}, t.Store.RenewSilk(ctx, l) })
	return err
}

func (t *timedStore) ReleaseSilk(ctx context.Context, underlay netip.Addr) error {
	_, err := observe(t, "release_silk", func() (nothing, error) { return nothing{}, t.Store.ReleaseSilk(ctx, underlay) })
	return err
}

func (t *timedStore) SecurityGroups(ctx context.Context, f store.GroupFilter) ([]policy.SecurityGroup, int64, error) {
	type page struct {
		groups []policy.SecurityGroup
		next   int64
	}
	p, err := observe(t, "security_groups", func() (p page, err error) {
		p.groups, p.next, err = t.Store.SecurityGroups(ctx, f)
		return p, err
	})
	return p.groups, p.next, err
}

func (t *timedStore) SecurityGroup(ctx context.Context, guid string) (policy.SecurityGroup, error) {
	return observe(t, "security_group", func() (policy.SecurityGroup, error) { return t.Store.SecurityGroup(ctx, guid) })
}

func (t *timedStore) PutSecurityGroup(ctx context.Context, g policy.SecurityGroup) error {
	_, err := observe(t, "put_security_group", func() (nothing, error) { return nothing{}, t.Store.PutSecurityGroup(ctx, g) })
	return err
}

func (t *timedStore) DeleteSecurityGroup(ctx context.Context, guid string) error {
	_, err := observe(t, "delete_security_group", func() (nothing, error) { return nothing{}, t.Store.DeleteSecurityGroup(ctx, guid) })
	return err
}

func (t *timedStore) ReplaceSecurityGroups(ctx context.Context, gs []policy.SecurityGroup) error {
	_, err := observe(t, "replace_security_groups", func() (nothing, error) { return nothing{}, t.Store.ReplaceSecurityGroups(ctx, gs) })
	return err
}

func (t *timedStore) SecurityGroupsUpdated(ctx context.Context) (time.Time, error) {
	return observe(t, "security_groups_updated", func() (time.Time, error) { return t.Store.SecurityGroupsUpdated(ctx) })
}

func (t *timedStore) Routes(ctx context.Context, f store.RouteFilter) ([]policy.Route, error) {
	return observe(t, "routes", func() ([]policy.Route, error) { return t.Store.Routes(ctx, f) })
}

func (t *timedStore) AddRoutes(ctx context.Context, rs []policy.Route, beside func(policy.AppID) bool) (api.Revision, error) {
	return observe(t, "add_routes", func() (api.Revision, error) { return t.Store.AddRoutes(ctx, rs, beside) })
}

func (t *timedStore) RemoveRoutes(ctx context.Context, rs []policy.Route) (api.Revision, error) {
	return observe(t, "remove_routes", func() (api.Revision, error) { return t.Store.RemoveRoutes(ctx, rs) })
}

func (t *timedStore) Domains(ctx context.Context) ([]policy.Hostname, error) {
	return observe(t, "domains", func() ([]policy.Hostname, error) { return t.Store.Domains(ctx) })
}

func (t *timedStore) AddDomain(ctx context.Context, d policy.Hostname) (api.Revision, error) {
	return observe(t, "add_domain", func() (api.Revision, error) { return t.Store.AddDomain(ctx, d) })
}

func (t *timedStore) RemoveDomain(ctx context.Context, d policy.Hostname) (api.Revision, error) {
	return observe(t, "remove_domain", func() (api.Revision, error) { return t.Store.RemoveDomain(ctx, d) })
}

func (t *timedStore) AddJoinToken(ctx context.Context, token store.JoinToken) error {
	_, err := observe(t, "add_join_token", func() (nothing, error) { return nothing{}, t.Store.AddJoinToken(ctx, token) })
	return err
}

func (t *timedStore) RedeemJoinToken(ctx context.Context, sum string) (store.JoinToken, error) {
	return observe(t, "redeem_join_token", func() (store.JoinToken, error) { return t.Store.RedeemJoinToken(ctx, sum) })
}

func (t *timedStore) CredentialRenewed(ctx context.Context, cell string, lifetime time.Duration) (time.Time, error) {
	return observe(t, "credential_renewed", func() (time.Time, error) { return t.Store.CredentialRenewed(ctx, cell, lifetime) })
}

func (t *timedStore) RevokeCell(ctx context.Context, cell string) (api.Revocation, error) {
	return observe(t, "revoke_cell", func() (api.Revocation, error) { return t.Store.RevokeCell(ctx, cell) })
}

func (t *timedStore) Revocations(ctx context.Context) ([]api.Revocation, error) {
	return observe(t, "revocations", func() ([]api.Revocation, error) { return t.Store.Revocations(ctx) })
}

func (t *timedStore) RegisterApp(ctx context.Context, ref api.AppRef) (policy.AppID, error) {
	return observe(t, "register_app", func() (policy.AppID, error) { return t.Store.RegisterApp(ctx, ref) })
}

func (t *timedStore) RemoveApp(ctx context.Context, app policy.AppID) error {
	_, err := observe(t, "remove_app", func() (nothing, error) { return nothing{}, t.Store.RemoveApp(ctx, app) })
	return err
}
