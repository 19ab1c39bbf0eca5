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
	// ErrTagsExhausted: all tags of the wire format are in use or resting; the
	// text says how many.
	ErrTagsExhausted = errors.New("no tag is free")
	// ErrNoLease: the pool of subnets is empty.
	ErrNoLease = errors.New("no lease available")
	// ErrConflict: the write contradicts what is stored; the text says what.
	ErrConflict = errors.New("conflict")
	// ErrNotFound: the thing named does not exist.
	ErrNotFound = errors.New("not found")
	// ErrNotYours: the name is that of an app which the caller may not touch.
	ErrNotYours = errors.New("the name is another's")
	// ErrRevoked: the credential that the change was asked for with is void.
	ErrRevoked = errors.New("the cell's credential was revoked")
	// ErrLocked: another process owns the database file.
	ErrLocked = errors.New("database is in use by another server")
	// ErrCorrupt: the database file is damaged, or is no database at all.
	ErrCorrupt = errors.New("database is damaged")
	// ErrFull: the disk is full; what was asked was not stored.
	ErrFull = errors.New("no space left for the database")
	// ErrAway: the database does not answer, or takes no writes; whether a write
	// that ended so was stored is not known.
	ErrAway = errors.New("the database does not answer")
	// ErrNewer: the database was written by a newer version of the program.
	ErrNewer = errors.New("database is from a newer version")
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
	// RestTags tells the store how to find out up to which revision every cell has
	// each change in force. A tag that was released is given to nobody before its
	// release is; until RestTags is called, to nobody at all.
	RestTags(acknowledged func() api.Revision)
	// Tag is the tag of an id of the given type ("" is an application's), which
	// gets one unless it has it. ErrConflict when the id is of another type,
	// ErrTagsExhausted.
	Tag(ctx context.Context, id policy.AppID, kind string) (api.AppTag, error)
	// LastUpdated is the time of the last create or delete of policies.
	LastUpdated(ctx context.Context) (time.Time, error)

	// Lease gives the cell its subnet, or renews the one it holds.
	// A generation that is not the stored one (a cell without its journal, or one
	// whose lease lapsed) gets a new, higher generation, and the cell's endpoints
	// of the old one are removed by the same change. The answer's revision is one at
	// which all that was asked for is stored. ErrNoLease, ErrConflict.
	Lease(ctx context.Context, cell string, r api.LeaseRequest) (api.Lease, error)
	// ReleaseLease ends the lease and the cell's endpoints; no lease is no error.
	ReleaseLease(ctx context.Context, cell string) error
	// Expire ends the leases that have run out, with their endpoints, and says
	// when to call again (zero: no lease is held).
	Expire(ctx context.Context) (next time.Time, err error)
	// AddPeer enters a silk-kind peer with a subnet of its own. Port 0 is 4789,
	// an empty kind silk, an empty mode vxlan. The same peer again is no change;
	// another with its name, address or subnet is ErrConflict.
	AddPeer(ctx context.Context, p api.Peer) error
	RemovePeer(ctx context.Context, name string) error
	// Cells lists the cells with a lease and the silk peers, by name.
	Cells(ctx context.Context) ([]Cell, error)

	// SetEndpoints replaces the cell's list. Apps named by name get their stored
	// GUID. A list whose sequence is not newer than the stored one changes
	// nothing and is answered with what stands. ErrNotFound without a lease,
	// ErrConflict when the generation is not the lease's.
	SetEndpoints(ctx context.Context, cell string, r api.EndpointsRequest) (api.EndpointsResponse, error)
	// Endpoints lists all, by cell and container, with the revision they were read at.
	Endpoints(ctx context.Context) (api.Endpoints, error)

	SilkStore
	SecurityGroupStore
	RouteStore
	CredentialStore
	SubjectStore
	SecretStore

	// Apps is the registry, by org, space and name.
	Apps(ctx context.Context) ([]App, error)
	// RegisterApp enters an app before any cell does, or finds it: by name, then it
	// gets a GUID, or under the GUID given. ErrConflict where that or the name is
	// another's.
	RegisterApp(ctx context.Context, ref api.AppRef) (policy.AppID, error)
	// RemoveApp forgets an app. ErrNotFound; ErrConflict while it has containers,
	// policies or routes.
	RemoveApp(ctx context.Context, app policy.AppID) error

	Auditor
	Keeper

	// Stats counts without reading the lists.
	Stats(ctx context.Context) (Stats, error)
	// Ping says whether the database answers.
	Ping(ctx context.Context) error
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
	Domains   []policy.Hostname
	Routes    []policy.Route // by age
	Revoked   []api.Revocation
	Secrets   []api.PairSecret
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

// Stats is the store in numbers.
type Stats struct {
	Revision  api.Revision
	Policies  int
	Tags      int // apps with a tag
	Resting   int // tags that were released and may not be given yet
	TagLimit  int // tags there are
	Leases    int // held by cells and silk peers, in subnets of the pool
	LeasePool int // subnets of the pool
	Endpoints int
	Apps      int
	Routes    int
}

// LeaseConfig is the overlay network and how it is cut into leases.
type LeaseConfig struct {
	Network  netip.Prefix  // e.g. 10.255.0.0/16
	Bits     int           // prefix length of a lease, e.g. 24; the first subnet is never given (single-IP leases)
	Lifetime time.Duration // e.g. 168 h
}
