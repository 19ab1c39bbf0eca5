package server

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

// The operations of the steady store. Those that are not here go to the database
// as they are: State and Changes, which the hub reads, and Export.

// Ping fails while the database is away.
func (s *steadyStore) Ping(ctx context.Context) error {
	return changing(ctx, s, s.Store.Ping)
}

func (s *steadyStore) Policies(ctx context.Context, f store.Filter) ([]policy.Policy, error) {
	return read(ctx, s, func(ctx context.Context) ([]policy.Policy, error) { return s.Store.Policies(ctx, f) },
		func() ([]policy.Policy, bool) { return s.hub.Policies(f), true })
}

func (s *steadyStore) Tags(ctx context.Context) ([]api.AppTag, error) {
	return read(ctx, s, s.Store.Tags, func() ([]api.AppTag, bool) { return s.hub.Tags(), true })
}

func (s *steadyStore) Endpoints(ctx context.Context) (api.Endpoints, error) {
	return read(ctx, s, s.Store.Endpoints, func() (api.Endpoints, bool) { return s.hub.Endpoints(), true })
}

func (s *steadyStore) LastUpdated(ctx context.Context) (time.Time, error) {
	revision := s.hub.Revision()
	return read(ctx, s, func(ctx context.Context) (time.Time, error) {
		at, err := s.Store.LastUpdated(ctx)
		if err == nil {
			s.memory.policiesUpdated(revision, at)
		}
		return at, err
	}, func() (time.Time, bool) { return s.memory.recallUpdated(s.hub.Revision()) })
}

func (s *steadyStore) Apps(ctx context.Context) ([]store.App, error) {
	return read(ctx, s, s.Store.Apps, func() ([]store.App, bool) { return recall(&s.memory, func(k *known) []store.App { return k.apps }) })
}

func (s *steadyStore) App(ctx context.Context, guid policy.AppID) (store.App, error) {
	return read(ctx, s, func(ctx context.Context) (store.App, error) { return s.Store.App(ctx, guid) }, func() (store.App, bool) {
		apps, _ := recall(&s.memory, func(k *known) []store.App { return k.apps })
		i := slices.IndexFunc(apps, func(a store.App) bool { return a.GUID == guid })
		if i < 0 {
			return store.App{}, false
		}
		return apps[i], true
	})
}

func (s *steadyStore) Cells(ctx context.Context) ([]store.Cell, error) {
	return read(ctx, s, s.Store.Cells, func() ([]store.Cell, bool) { return recall(&s.memory, func(k *known) []store.Cell { return k.cells }) })
}

func (s *steadyStore) SilkLeases(ctx context.Context) ([]store.SilkLease, error) {
	return read(ctx, s, s.Store.SilkLeases, func() ([]store.SilkLease, bool) {
		return recall(&s.memory, func(k *known) []store.SilkLease { return k.silk })
	})
}

func (s *steadyStore) Stats(ctx context.Context) (store.Stats, error) {
	return read(ctx, s, s.Store.Stats, func() (store.Stats, bool) {
		stats, ok := recall(&s.memory, func(k *known) store.Stats { return k.stats })
		stats.Revision = max(stats.Revision, s.hub.Revision())
		return stats, ok
	})
}

func (s *steadyStore) Audit(ctx context.Context, before uint64, limit int) ([]api.AuditEntry, error) {
	return alter(ctx, s, func(ctx context.Context) ([]api.AuditEntry, error) { return s.Store.Audit(ctx, before, limit) })
}

// groupsPage is what SecurityGroups answers.
type groupsPage struct {
	groups []policy.SecurityGroup
	next   int64
}

func (s *steadyStore) SecurityGroups(ctx context.Context, f store.GroupFilter) ([]policy.SecurityGroup, int64, error) {
	p, err := read(ctx, s, func(ctx context.Context) (p groupsPage, err error) {
		p.groups, p.next, err = s.Store.SecurityGroups(ctx, f)
		return p, err
	}, func() (groupsPage, bool) {
		groups, ok := s.memory.securityGroups(f)
		return groupsPage{groups: groups}, ok
	})
	return p.groups, p.next, err
}

func (s *steadyStore) SecurityGroup(ctx context.Context, guid string) (policy.SecurityGroup, error) {
	type answer struct {
		group policy.SecurityGroup
		known bool
	}
	a, err := read(ctx, s, func(ctx context.Context) (answer, error) {
		g, err := s.Store.SecurityGroup(ctx, guid)
		return answer{g, true}, err
	}, func() (answer, bool) {
		groups, ok := s.memory.securityGroups(store.GroupFilter{All: true})
		for _, g := range groups {
			if g.GUID == guid {
				return answer{g, true}, true
			}
		}
		return answer{}, ok
	})
	if err == nil && !a.known {
		err = fmt.Errorf("read security group: %w: no security group %q", store.ErrNotFound, guid)
	}
	return a.group, err
}

func (s *steadyStore) SecurityGroupsUpdated(ctx context.Context) (time.Time, error) {
	return read(ctx, s, s.Store.SecurityGroupsUpdated, func() (time.Time, bool) {
		return recall(&s.memory, func(k *known) time.Time { return k.groupsUpdated })
	})
}

func (s *steadyStore) AddPolicies(ctx context.Context, ps []policy.Policy) (api.Revision, error) {
	return alter(ctx, s, func(ctx context.Context) (api.Revision, error) { return s.Store.AddPolicies(ctx, ps) })
}

func (s *steadyStore) RemovePolicies(ctx context.Context, ps []policy.Policy) (api.Revision, error) {
	return alter(ctx, s, func(ctx context.Context) (api.Revision, error) { return s.Store.RemovePolicies(ctx, ps) })
}

func (s *steadyStore) Tag(ctx context.Context, id policy.AppID, kind string) (api.AppTag, error) {
	return alter(ctx, s, func(ctx context.Context) (api.AppTag, error) { return s.Store.Tag(ctx, id, kind) })
}

func (s *steadyStore) Lease(ctx context.Context, cell string, r api.LeaseRequest) (api.Lease, error) {
	return alter(ctx, s, func(ctx context.Context) (api.Lease, error) { return s.Store.Lease(ctx, cell, r) })
}

func (s *steadyStore) PutSecrets(ctx context.Context, cell string, r api.SecretsRequest) error {
	return changing(ctx, s, func(ctx context.Context) error { return s.Store.PutSecrets(ctx, cell, r) })
}

func (s *steadyStore) ReleaseLease(ctx context.Context, cell string) error {
	return changing(ctx, s, func(ctx context.Context) error { return s.Store.ReleaseLease(ctx, cell) })
}

func (s *steadyStore) Expire(ctx context.Context) (time.Time, error) {
	return alter(ctx, s, s.Store.Expire)
}

func (s *steadyStore) AddPeer(ctx context.Context, p api.Peer) error {
	return changing(ctx, s, func(ctx context.Context) error { return s.Store.AddPeer(ctx, p) })
}

func (s *steadyStore) RemovePeer(ctx context.Context, name string) error {
	return changing(ctx, s, func(ctx context.Context) error { return s.Store.RemovePeer(ctx, name) })
}

func (s *steadyStore) SetEndpoints(ctx context.Context, cell string, r api.EndpointsRequest) (api.EndpointsResponse, error) {
	return alter(ctx, s, func(ctx context.Context) (api.EndpointsResponse, error) { return s.Store.SetEndpoints(ctx, cell, r) })
}

func (s *steadyStore) AcquireSilk(ctx context.Context, underlay netip.Addr, single bool) (store.SilkLease, error) {
	return alter(ctx, s, func(ctx context.Context) (store.SilkLease, error) { return s.Store.AcquireSilk(ctx, underlay, single) })
}

func (s *steadyStore) RenewSilk(ctx context.Context, l store.SilkLease) error {
	return changing(ctx, s, func(ctx context.Context) error { return s.Store.RenewSilk(ctx, l) })
}

func (s *steadyStore) ReleaseSilk(ctx context.Context, underlay netip.Addr) error {
	return changing(ctx, s, func(ctx context.Context) error { return s.Store.ReleaseSilk(ctx, underlay) })
}

func (s *steadyStore) PutSecurityGroup(ctx context.Context, g policy.SecurityGroup) error {
	return changing(ctx, s, func(ctx context.Context) error { return s.Store.PutSecurityGroup(ctx, g) })
}

func (s *steadyStore) DeleteSecurityGroup(ctx context.Context, guid string) error {
	return changing(ctx, s, func(ctx context.Context) error { return s.Store.DeleteSecurityGroup(ctx, guid) })
}

func (s *steadyStore) ReplaceSecurityGroups(ctx context.Context, gs []policy.SecurityGroup) error {
	return changing(ctx, s, func(ctx context.Context) error { return s.Store.ReplaceSecurityGroups(ctx, gs) })
}

func (s *steadyStore) AddJoinToken(ctx context.Context, t store.JoinToken) error {
	return changing(ctx, s, func(ctx context.Context) error { return s.Store.AddJoinToken(ctx, t) })
}

func (s *steadyStore) RedeemJoinToken(ctx context.Context, sum string) (store.JoinToken, error) {
	return alter(ctx, s, func(ctx context.Context) (store.JoinToken, error) { return s.Store.RedeemJoinToken(ctx, sum) })
}

func (s *steadyStore) CredentialRenewed(ctx context.Context, cell string, lifetime time.Duration) (time.Time, error) {
	return alter(ctx, s, func(ctx context.Context) (time.Time, error) { return s.Store.CredentialRenewed(ctx, cell, lifetime) })
}

func (s *steadyStore) RevokeCell(ctx context.Context, cell string) (api.Revocation, error) {
	return alter(ctx, s, func(ctx context.Context) (api.Revocation, error) { return s.Store.RevokeCell(ctx, cell) })
}

func (s *steadyStore) Revocations(ctx context.Context) ([]api.Revocation, error) {
	return alter(ctx, s, s.Store.Revocations)
}

func (s *steadyStore) Routes(ctx context.Context, f store.RouteFilter) ([]policy.Route, error) {
	return read(ctx, s, func(ctx context.Context) ([]policy.Route, error) { return s.Store.Routes(ctx, f) }, func() ([]policy.Route, bool) {
		all, ok := recall(&s.memory, func(k *known) []policy.Route { return k.routes })
		selected := []policy.Route{}
		for _, r := range all {
			if (f.App == "" || r.App == f.App) && (f.Name == "" || r.Name == f.Name) {
				selected = append(selected, r)
			}
		}
		return selected, ok
	})
}

func (s *steadyStore) Domains(ctx context.Context) ([]policy.Hostname, error) {
	return read(ctx, s, s.Store.Domains, func() ([]policy.Hostname, bool) {
		return recall(&s.memory, func(k *known) []policy.Hostname { return k.domains })
	})
}

func (s *steadyStore) AddRoutes(ctx context.Context, rs []policy.Route, beside func(policy.AppID) bool) (api.Revision, error) {
	return alter(ctx, s, func(ctx context.Context) (api.Revision, error) { return s.Store.AddRoutes(ctx, rs, beside) })
}

func (s *steadyStore) RemoveRoutes(ctx context.Context, rs []policy.Route) (api.Revision, error) {
	return alter(ctx, s, func(ctx context.Context) (api.Revision, error) { return s.Store.RemoveRoutes(ctx, rs) })
}

func (s *steadyStore) AddDomain(ctx context.Context, d policy.Hostname) (api.Revision, error) {
	return alter(ctx, s, func(ctx context.Context) (api.Revision, error) { return s.Store.AddDomain(ctx, d) })
}

func (s *steadyStore) RemoveDomain(ctx context.Context, d policy.Hostname) (api.Revision, error) {
	return alter(ctx, s, func(ctx context.Context) (api.Revision, error) { return s.Store.RemoveDomain(ctx, d) })
}

func (s *steadyStore) RegisterApp(ctx context.Context, ref api.AppRef) (policy.AppID, error) {
	return alter(ctx, s, func(ctx context.Context) (policy.AppID, error) { return s.Store.RegisterApp(ctx, ref) })
}

func (s *steadyStore) RemoveApp(ctx context.Context, app policy.AppID) error {
	return changing(ctx, s, func(ctx context.Context) error { return s.Store.RemoveApp(ctx, app) })
}
