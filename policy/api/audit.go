package api

import (
	"encoding/json"
	"time"
)

// PathAudit is the record of changes, newest first. Scope network.admin.
const PathAudit = "/v1/audit" // GET [?limit=N&before=ID] -> Audit

// Entries of the record in one answer, at most and unless asked otherwise.
const (
	MaxAuditLimit     = 1000
	DefaultAuditLimit = 100
)

// Action is what was done to a thing.
type Action string

// The actions that are recorded. The subject of each is in parentheses.
const (
	PolicyCreate Action = "policy.create" // (the policy, as "web -> db tcp 5432")
	PolicyDelete Action = "policy.delete"
	LeaseGrant   Action = "lease.grant"  // (the cell)
	LeaseChange  Action = "lease.change" // another address, subnet, mode or generation; renewals are not recorded
	LeaseRelease Action = "lease.release"
	LeaseExpire  Action = "lease.expire"
	PeerAdd      Action = "peer.add" // (the peer)
	PeerRemove   Action = "peer.remove"
	AppRegister  Action = "app.register" // (the app's GUID)
	AppRemove    Action = "app.remove"
	RouteMap     Action = "route.map" // (the route, as "web.apps.internal -> web"); what NATS registers is not recorded
	RouteUnmap   Action = "route.unmap"
	DomainAdd    Action = "domain.add" // (the domain)
	DomainRemove Action = "domain.remove"
	CellInvite   Action = "cell.invite" // a join token was made (the cell)
	CellJoin     Action = "cell.join"
	CellRenew    Action = "cell.renew"
	CellRevoke   Action = "cell.revoke"
	TagGive      Action = "tag.give"  // by request; apps have theirs by their policies (the id)
	GroupSet     Action = "group.set" // (the security group's GUID)
	GroupDelete  Action = "group.delete"
	StoreImport  Action = "store.import" // (the file's kind)
)

// AuditEntry is one change of one thing. Before is null for what was made, After
// for what was removed; otherwise they are the thing's JSON: a Policy, a Peer,
// an AuditApp, a Route, a domain's name.
type AuditEntry struct {
	ID       uint64          `json:"id"` // grows by one with each entry
	At       time.Time       `json:"at"`
	Who      string          `json:"who"`  // a token's name, "cell NAME", "legacy NAME", "uid N", or "server" for what happens by itself
	From     string          `json:"from"` // the caller's address, "admin socket" or "command"; "" for the server itself
	Action   Action          `json:"action"`
	Subject  string          `json:"subject"`
	Revision Revision        `json:"revision"` // at which it is in force
	Before   json.RawMessage `json:"before"`
	After    json.RawMessage `json:"after"`
}

// AuditApp is an app in an AuditEntry. An app known by its GUID alone has no name.
type AuditApp struct {
	GUID  string `json:"guid"`
	Name  string `json:"name,omitempty"`
	Space string `json:"space,omitempty"`
	Org   string `json:"org,omitempty"`
}

// Audit is the answer of GET /v1/audit.
type Audit struct {
	Entries []AuditEntry `json:"entries"`
	Next    uint64       `json:"next,omitempty"` // the value of before for what comes next; absent: nothing
}

// MarshalJSON writes an empty list as [], never null.
func (a Audit) MarshalJSON() ([]byte, error) {
	type plain Audit
	a.Entries = orEmpty(a.Entries)
	return json.Marshal(plain(a))
}
