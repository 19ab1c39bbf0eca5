package store

import (
	"context"

	"tulle/policy"
	"tulle/policy/api"
)

// RouteStore keeps internal domains and routes: part of every cell's revisions.
type RouteStore interface {
	// Routes lists by name and then by age.
	Routes(ctx context.Context, f RouteFilter) ([]policy.Route, error)
	// AddRoutes stores what is not there yet, all or nothing. An app's name must
	// lie directly in an internal domain: ErrNotFound. beside, where given, is
	// asked of the apps that have one of the names already, and must not block:
	// ErrNotYours where it says no.
	AddRoutes(ctx context.Context, rs []policy.Route, beside func(policy.AppID) bool) (api.Revision, error)
	// RemoveRoutes deletes what is there and skips the rest.
	RemoveRoutes(ctx context.Context, rs []policy.Route) (api.Revision, error)

	// Domains lists the internal domains, sorted.
	Domains(ctx context.Context) ([]policy.Hostname, error)
	// AddDomain makes a domain internal; what is one already is no change.
	AddDomain(ctx context.Context, d policy.Hostname) (api.Revision, error)
	// RemoveDomain ends that. ErrNotFound; ErrConflict while apps have names in it.
	RemoveDomain(ctx context.Context, d policy.Hostname) (api.Revision, error)
}

// RouteFilter selects routes by app and by name, as far as given.
type RouteFilter struct {
	App  policy.AppID
	Name policy.Hostname
}
