package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"tulle/policy"
	"tulle/policy/api"
)

// Keeper is the part of a Store that gives its content away as a whole and takes
// it back.
type Keeper interface {
	// Export is everything at one revision, read in one transaction.
	Export(ctx context.Context) (*Backup, error)
	// Import puts a backup into an empty store, all of it or nothing. The store
	// gets an epoch of its own, so that whoever knows another history takes a new
	// snapshot. ErrConflict where the store is not empty, the backup contradicts
	// itself, or its leases do not fit the overlay network.
	Import(ctx context.Context, b *Backup) error
}

// BackupKind and BackupVersion mark a backup's text.
const (
	BackupKind    = "tulle-policy-server-backup"
	BackupVersion = 1
)

// Backup is the whole content of a store. Times have microseconds.
type Backup struct {
	Kind     string       `json:"kind"`
	Version  int          `json:"version"`
	At       time.Time    `json:"at"` // when it was made
	Epoch    api.Epoch    `json:"epoch"`
	Revision api.Revision `json:"revision"`

	PoliciesUpdated time.Time        `json:"policies_updated"`
	Policies        []api.Policy     `json:"policies"`
	Tags            []BackupTag      `json:"tags"`
	Orgs            []BackupOrg      `json:"orgs"`
	Spaces          []BackupSpace    `json:"spaces"`
	Apps            []BackupApp      `json:"apps"`
	Cells           []BackupCell     `json:"cells"`
	Endpoints       []api.Endpoint   `json:"endpoints"`
	Audit           []api.AuditEntry `json:"audit"` // oldest first

	Revoked []api.Revocation `json:"revoked,omitempty"` // join tokens, which live short, are left out

	GroupsUpdated  time.Time           `json:"groups_updated,omitzero"`
	SecurityGroups []api.SecurityGroup `json:"security_groups"` // in the order in which they are paged

	Domains []policy.Hostname `json:"domains,omitempty"` // absent: made before there were routes
	Routes  []policy.Route    `json:"routes,omitempty"`  // by age
}

// BackupTag is a tag that was given once, to an app or, with a type, to what else
// App names. Without an app it is free from FreeAt on.
type BackupTag struct {
	Tag    policy.Tag   `json:"tag"`
	App    policy.AppID `json:"app,omitempty"`
	Type   string       `json:"type,omitempty"` // as in api.AppTag
	FreeAt time.Time    `json:"free_at,omitzero"`
}

// BackupOrg is an org of the registry.
type BackupOrg struct {
	GUID string `json:"guid"`
	Name string `json:"name"`
}

// BackupSpace is a space of the registry.
type BackupSpace struct {
	GUID string `json:"guid"`
	Org  string `json:"org"` // GUID
	Name string `json:"name"`
}

// BackupApp is an app of the registry. One known by its GUID alone has no name
// and no space.
type BackupApp struct {
	GUID  policy.AppID `json:"guid"`
	Space string       `json:"space,omitempty"` // GUID
	Name  string       `json:"name,omitempty"`
}

// BackupCell is a cell or silk peer, also one whose lease has ended: its
// generation must never fall back.
type BackupCell struct {
	api.Peer           // Subnet is the zero value where another has it by now
	Live     bool      `json:"live"`
	Renewed  time.Time `json:"renewed"`
	Expires  time.Time `json:"expires,omitzero"` // absent: never
	Sequence int64     `json:"sequence"`
}

// ReadBackup reads a backup's text and checks it.
func ReadBackup(r io.Reader) (*Backup, error) {
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	b := new(Backup)
	if err := d.Decode(b); err != nil {
		return nil, fmt.Errorf("read backup: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("read backup: something follows it")
	}
	switch {
	case b.Kind != BackupKind:
		return nil, fmt.Errorf("read backup: its kind is %q, not %q", b.Kind, BackupKind)
	case b.Version > BackupVersion:
		return nil, fmt.Errorf("read backup: %w: version %d, this program knows %d", ErrNewer, b.Version, BackupVersion)
	case b.Version < 1:
		return nil, fmt.Errorf("read backup: there is no version %d", b.Version)
	}
	_, err := b.Check(policy.MaxTag)
	if err != nil {
		return nil, fmt.Errorf("read backup: %w", err)
	}
	return b, nil
}

// Check returns the policies if they and the tags agree: each is valid, and an
// app in a policy has a tag, its own. ErrConflict otherwise, and where a security
// group, a domain or a route is there twice or is none.
func (b *Backup) Check(maxTag policy.Tag) ([]policy.Policy, error) {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %w", ErrConflict, fmt.Errorf(format, args...))
	}
	tags := make(map[policy.AppID]policy.Tag)
	types := make(map[policy.AppID]string)
	given := make(map[policy.Tag]bool)
	for _, t := range b.Tags {
		switch {
		case t.Tag == policy.NoTag || t.Tag > maxTag:
			return nil, bad("tag %d is not from 1 to %d", t.Tag, maxTag)
		case given[t.Tag]:
			return nil, bad("tag %s is there twice", t.Tag)
		case t.App != "" && tags[t.App] != policy.NoTag:
			return nil, bad("app %s has two tags, %s and %s", t.App, tags[t.App], t.Tag)
		}
		given[t.Tag] = true
		if t.App != "" {
			tags[t.App], types[t.App] = t.Tag, t.Type
		}
	}
	ps := make([]policy.Policy, len(b.Policies))
	for i, p := range b.Policies {
		var err error
		if ps[i], err = p.Domain(); err != nil {
			return nil, bad("policy %d: %w", i+1, err)
		}
		for _, app := range []policy.AppID{ps[i].Source, ps[i].Destination} {
			if tags[app] == policy.NoTag {
				return nil, bad("app %s is in a policy and has no tag", app)
			}
			if kind := types[app]; kind != "" && kind != api.TypeApp {
				return nil, bad("%s is in a policy and of type %s", app, kind)
			}
		}
	}
	groups := make(map[string]bool)
	for _, g := range b.SecurityGroups {
		if g.GUID == "" || groups[g.GUID] {
			return nil, bad("security group %q is there twice or has no guid", g.GUID)
		}
		groups[g.GUID] = true
	}
	return ps, b.checkRoutes()
}

// checkRoutes refuses what could not have been stored.
func (b *Backup) checkRoutes() error {
	domains := make(map[policy.Hostname]bool)
	for _, d := range b.Domains {
		if got, err := policy.ParseDomain(string(d)); err != nil || got != d || domains[d] {
			return fmt.Errorf("%w: the domain %q is there twice or is none", ErrConflict, d)
		}
		domains[d] = true
	}
	routes := make(map[policy.Route]bool)
	for _, r := range b.Routes {
		if err := r.Validate(); err != nil {
			return fmt.Errorf("%w: %w", ErrConflict, err)
		}
		if routes[r] {
			return fmt.Errorf("%w: the route %s is there twice", ErrConflict, r)
		}
		routes[r] = true
	}
	return nil
}
