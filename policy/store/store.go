// Package store keeps the control plane's state in a SQL database: policies,
// tags, the registry of orgs, spaces and apps, leases, peers and endpoints, all
// under one revision.
//
// Every write is one transaction that also raises the single-row revision
// counter and records the change, so commit order is revision order and a
// watcher that asks for "after N" can never miss one. Nothing is kept only in
// memory; the server's view is built from State and Changes.
package store

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"tulle/policy"
	"tulle/policy/api"
)

// Errors callers branch on.
var (
	// ErrCompacted: the changes asked for are no longer kept; take a State.
	ErrCompacted = errors.New("history is compacted")
	// ErrTagsExhausted: all tags of the wire format are in use or resting.
	ErrTagsExhausted = errors.New("no tag is free: 65535 is the limit of the VXLAN group policy id")
	// ErrNoLease: the pool of subnets is empty.
	ErrNoLease = errors.New("no lease available")
	// ErrConflict: the write contradicts what is stored; the text says what.
	ErrConflict = errors.New("conflict")
	// ErrNotFound: the thing named does not exist.
	ErrNotFound = errors.New("not found")
	// ErrLocked: another process owns the database file.
	ErrLocked = errors.New("database is in use by another server")
)

// Store is the control plane's database. Methods are safe for concurrent use.
// A method that fails leaves nothing behind.
type Store interface {
	Epoch() api.Epoch

	// State is everything at one revision. The caller owns it.
	State(ctx context.Context) (*State, error)
	// Changes lists what was committed after revision, in order, at most limit.
	Changes(ctx context.Context, after api.Revision, limit int) ([]api.Delta, error)
	// Changed returns a channel that is closed at the next commit. Take it
	// before reading Changes, and nothing is missed.
	Changed() <-chan struct{}

	// AddPolicies stores what is not there yet; both apps get a tag.
	AddPolicies(ctx context.Context, ps []policy.Policy) (api.Revision, error)
	// RemovePolicies deletes exact matches and skips the rest; an app that is
	// in no policy any more loses its tag.
	RemovePolicies(ctx context.Context, ps []policy.Policy) (api.Revision, error)
	Policies(ctx context.Context, f Filter) ([]policy.Policy, error)
	Tags(ctx context.Context) ([]api.AppTag, error)
	// LastUpdated is the time of the last create or delete of policies.
	LastUpdated(ctx context.Context) (time.Time, error)

	// Lease gives the cell its subnet, or renews the one it holds.
	Lease(ctx context.Context, cell string, r api.LeaseRequest) (api.Lease, error)
	ReleaseLease(ctx context.Context, cell string) error
	// AddPeer enters a silk-kind peer with a subnet of its own.
	AddPeer(ctx context.Context, p api.Peer) error
	RemovePeer(ctx context.Context, name string) error
	Cells(ctx context.Context) ([]Cell, error)

	// SetEndpoints replaces the cell's list. Apps named by name get their stored
	// GUID. A list whose sequence is not newer than the stored one changes nothing.
	SetEndpoints(ctx context.Context, cell string, r api.EndpointsRequest) (api.EndpointsResponse, error)
	Endpoints(ctx context.Context) ([]api.Endpoint, error)

	Apps(ctx context.Context) ([]App, error)

	Close() error
}

// Filter selects policies as the original's list does: IDs match source or
// destination; otherwise Sources and Destinations both, as far as given. A nil
// slice is "not given"; an empty, non-nil one matches nothing.
type Filter struct {
	IDs, Sources, Destinations []policy.AppID
}

// State is the whole of what cells need, at one revision.
type State struct {
	Epoch     api.Epoch
	Revision  api.Revision
	Policies  []policy.Policy
	Tags      []api.AppTag
	Endpoints []api.Endpoint
	Peers     []api.Peer // every cell with a live lease, and every silk peer
}

// Cell is a cell or silk peer as an operator sees it.
type Cell struct {
	api.Peer
	Renewed time.Time
	Expires time.Time // zero: never (silk peers)
}

// App is an entry of the registry.
type App struct {
	GUID             policy.AppID
	Name             string
	SpaceGUID, Space string
	OrgGUID, Org     string
	Instances        int // endpoints registered now
}

// LeaseConfig is the overlay network and how it is cut into leases.
type LeaseConfig struct {
	Network  netip.Prefix  // e.g. 10.255.0.0/16
	Bits     int           // prefix length of a lease, e.g. 24; the first subnet is never given (single-IP leases)
	Lifetime time.Duration // e.g. 168 h
}
