package api

import (
	"net/netip"

	"tulle/policy"
)

// Paths of the internal API (mutual TLS, cell root). {name} is the cell's name
// and must be the one in the client certificate's URI SAN.
const (
	PathLease     = "/networking/v1/internal/cells/{name}/lease"     // PUT LeaseRequest -> Lease; DELETE
	PathEndpoints = "/networking/v1/internal/cells/{name}/endpoints" // PUT EndpointsRequest -> EndpointsResponse
	PathAck       = "/networking/v1/internal/cells/{name}/ack"       // POST Ack -> 204
	PathSecrets   = "/networking/v1/internal/cells/{name}/secrets"   // PUT SecretsRequest -> 204
	PathWatch     = "/networking/v1/internal/watch"                  // GET ?epoch=E&revision=N -> stream of Event, NDJSON

	PathInternalTags = "/networking/v1/internal/tags" // PUT TagRequest -> Tag
)

// Revision counts committed changes of the store. Commit order is revision
// order; a revision means something only together with its Epoch.
type Revision uint64

// Epoch names one life of a store. A restore or an import changes it.
type Epoch string

// TunnelMode is how frames travel to and from one peer.
type TunnelMode string

// Tunnel modes.
const (
	// ModeVXLAN is plain VXLAN-GBP over UDP, which anybody between can read.
	ModeVXLAN TunnelMode = "vxlan"
	// ModeWireGuard is the same inside WireGuard, between cells that both have it.
	ModeWireGuard TunnelMode = "wireguard"
)

// PeerKind tells who publishes a peer's endpoints.
type PeerKind string

// Peer kinds.
const (
	KindTulle PeerKind = "tulle" // publishes its endpoints
	KindSilk  PeerKind = "silk"  // publishes nothing: judged by lease and tag alone
)

// LeaseRequest asks for the cell's share of the overlay, or renews it. A cell
// that still has its journal sends the subnet and generation it holds; one that
// comes without (Generation 0) gets the same subnet under a new generation.
type LeaseRequest struct {
	Underlay   netip.Addr   `json:"underlay"`
	Port       uint16       `json:"port"` // UDP port of VXLAN, in either mode
	Mode       TunnelMode   `json:"mode"`
	Subnet     netip.Prefix `json:"subnet,omitzero"`
	Generation uint64       `json:"generation,omitempty"`

	// Of mode wireguard: the public key that the cell made, and the UDP port where
	// it listens for it. The tunnel address follows from the lease, see LeasedTunnel.
	Key           TunnelKey `json:"key,omitzero"`
	WireGuardPort uint16    `json:"wireguard_port,omitempty"`
	// NextKey is taken as well while the cell rotates its key: peers take handshakes
	// from both.
	NextKey TunnelKey `json:"next_key,omitzero"`
	// EncapsulationKey is there if the cell has a post-quantum secret with each peer
	// that has one, too.
	EncapsulationKey EncapsulationKey `json:"encapsulation_key,omitempty"`
}

// Lease is a cell's share of the overlay network.
type Lease struct {
	Cell       string       `json:"cell"`
	Network    netip.Prefix `json:"network"` // the whole overlay, e.g. 10.255.0.0/16
	Subnet     netip.Prefix `json:"subnet"`  // this cell's part, e.g. 10.255.7.0/24
	Generation uint64       `json:"generation"`
	Seconds    int64        `json:"seconds"` // lifetime from the answer on; the cell fences itself on its own CLOCK_BOOTTIME

	// What was asked for is known to whoever has this revision.
	Epoch    Epoch    `json:"epoch,omitempty"`
	Revision Revision `json:"revision,omitempty"`
}

// AppRef names an application: by GUID, or by name within a space and an org.
// By name, the server's registry gives each its stored GUID once.
type AppRef struct {
	GUID  policy.AppID `json:"guid,omitempty"`
	Name  string       `json:"name,omitempty"`
	Space string       `json:"space,omitempty"`
	Org   string       `json:"org,omitempty"`
}

// EndpointRegistration is one container as its cell registers it.
type EndpointRegistration struct {
	Container   string     `json:"container"`
	Address     netip.Addr `json:"address"`
	App         AppRef     `json:"app"`
	Instance    string     `json:"instance,omitempty"`
	Incarnation uint64     `json:"incarnation"` // counter part; the lease generation is the other
}

// EndpointsRequest is the whole list of a cell's endpoints. Sequence grows with
// every request of a cell (across restarts); the server ignores an older one.
type EndpointsRequest struct {
	Generation uint64                 `json:"generation"`
	Sequence   uint64                 `json:"sequence"`
	Endpoints  []EndpointRegistration `json:"endpoints"`
}

// EndpointsResponse says what became of the list: App by container, refusals by
// container (the others stand), and the revision at which the list is in force.
type EndpointsResponse struct {
	Epoch    Epoch                   `json:"epoch"`
	Revision Revision                `json:"revision"`
	Apps     map[string]policy.AppID `json:"apps"`
	Refused  map[string]string       `json:"refused,omitempty"`
}

// Ack says that the cell has published its table at Revision and cut every flow
// that the changes up to it forbid. Sent after each delta, coalesced, and at
// least every AckInterval as a sign of life.
type Ack struct {
	Epoch    Epoch    `json:"epoch"`
	Revision Revision `json:"revision"`
}

// Event is one line of the watch stream. Exactly one of the pointers is set.
type Event struct {
	Snapshot  *Snapshot  `json:"snapshot,omitempty"`
	Delta     *Delta     `json:"delta,omitempty"`
	Heartbeat *Heartbeat `json:"heartbeat,omitempty"`
	Liveness  *Liveness  `json:"liveness,omitempty"`
	// Groups are the security groups that concern the cell.
	Groups *GroupChange `json:"security_groups,omitempty"`
}

// Snapshot is everything that concerns the cell at one revision. It replaces
// all the cell knew.
type Snapshot struct {
	Epoch     Epoch      `json:"epoch"`
	Revision  Revision   `json:"revision"`
	Policies  []Policy   `json:"policies"`
	Tags      []AppTag   `json:"tags"`
	Endpoints []Endpoint `json:"endpoints"` // on other cells, of the apps that one of this cell's has a policy with
	Peers     []Peer     `json:"peers"`     // all but the cell itself
	Floor     Revision   `json:"floor"`

	Secrets []PairSecret `json:"secrets,omitempty"` // of the cell's own pairs

	// Names, of which every cell knows all: the internal domains, the routes in
	// them, and the instances, on other cells, of the apps that have one.
	Domains   []policy.Hostname `json:"domains"`
	Routes    []policy.Route    `json:"routes"`
	Instances []Instance        `json:"instances"`
}

// Delta is what changed for the cell, up to and including Revision. Removals
// are applied before additions. Within one delta an item stands in at most one
// of the two lists. A delta may span several revisions, may set what the cell
// has already and remove what it has not: neither changes anything.
type Delta struct {
	Revision         Revision       `json:"revision"`
	PoliciesRemoved  []Policy       `json:"policies_removed,omitempty"`
	PoliciesAdded    []Policy       `json:"policies_added,omitempty"`
	TagsRemoved      []policy.AppID `json:"tags_removed,omitempty"`
	TagsSet          []AppTag       `json:"tags_set,omitempty"`
	EndpointsRemoved []EndpointKey  `json:"endpoints_removed,omitempty"`
	EndpointsSet     []Endpoint     `json:"endpoints_set,omitempty"`
	PeersRemoved     []string       `json:"peers_removed,omitempty"`
	PeersSet         []Peer         `json:"peers_set,omitempty"`
	Revoked          []Revocation   `json:"revoked,omitempty"`     // for servers; no cell is told
	SecretsSet       []PairSecret   `json:"secrets_set,omitempty"` // of the cell's own pairs; they go with a peer
	Floor            Revision       `json:"floor"`

	DomainsRemoved   []policy.Hostname `json:"domains_removed,omitempty"`
	DomainsSet       []policy.Hostname `json:"domains_set,omitempty"`
	RoutesRemoved    []policy.Route    `json:"routes_removed,omitempty"`
	RoutesSet        []policy.Route    `json:"routes_set,omitempty"`
	InstancesRemoved []netip.Addr      `json:"instances_removed,omitempty"` // nobody's now
	InstancesSet     []Instance        `json:"instances_set,omitempty"`     // whose the address is now
}

// Heartbeat keeps the stream alive and carries what moved without concerning
// the cell. Floor is the lowest revision that all cells concerned by this
// cell's endpoints have acknowledged; freed addresses rest until it passes.
type Heartbeat struct {
	Revision Revision `json:"revision"`
	Floor    Revision `json:"floor"`
}

// AppTag is the tag of an application, or of what has one without being an
// application: then Type says what it is, and App is its id.
type AppTag struct {
	App  policy.AppID `json:"app"`
	Tag  policy.Tag   `json:"tag"`
	Type string       `json:"type,omitempty"` // "": an application
}

// Endpoint is a container as other cells know it.
type Endpoint struct {
	Cell        string       `json:"cell"`
	Container   string       `json:"container"`
	Address     netip.Addr   `json:"address"`
	App         policy.AppID `json:"app"`
	Instance    string       `json:"instance,omitempty"`
	Generation  uint64       `json:"generation"` // of the cell's lease
	Incarnation uint64       `json:"incarnation"`
}

// EndpointKey names an endpoint that is no more.
type EndpointKey struct {
	Cell        string     `json:"cell"`
	Container   string     `json:"container"`
	Address     netip.Addr `json:"address"`
	Generation  uint64     `json:"generation"`
	Incarnation uint64     `json:"incarnation"`
}

// Peer is another cell as the data path sees it. Lease generation changes when
// the cell came back without its journal: every endpoint and flow of an older
// generation is void.
type Peer struct {
	Name       string       `json:"name"`
	Kind       PeerKind     `json:"kind"`
	Mode       TunnelMode   `json:"mode"`
	Underlay   netip.Addr   `json:"underlay"`
	Port       uint16       `json:"port"` // of VXLAN
	Subnet     netip.Prefix `json:"subnet"`
	Generation uint64       `json:"generation"`

	// Of mode wireguard alone: the peer's public key, the UDP port where it listens
	// for WireGuard, and its address inside the tunnel. The three stand and fall
	// with the lease.
	Key           TunnelKey  `json:"key,omitzero"`
	WireGuardPort uint16     `json:"wireguard_port,omitempty"`
	Tunnel        netip.Addr `json:"tunnel,omitzero"`
	// NextKey is the peer's as well, while it rotates its key.
	NextKey TunnelKey `json:"next_key,omitzero"`
	// EncapsulationKey is there if the peer makes post-quantum secrets.
	EncapsulationKey EncapsulationKey `json:"encapsulation_key,omitempty"`
}
