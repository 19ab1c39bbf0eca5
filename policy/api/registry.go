package api

import (
	"encoding/json"
	"net/netip"
	"time"

	"tulle/policy"
)

// Paths of the external API that the original does not have: what the control
// plane knows of apps, cells and endpoints. Scope network.admin or network.write.
const (
	PathApps         = "/v1/apps"        // GET -> Apps; POST AppRef -> Registered
	PathApp          = "/v1/apps/{guid}" // DELETE -> 204
	PathCells        = "/v1/cells"       // GET -> Cells
	PathAllEndpoints = "/v1/endpoints"   // GET -> Endpoints
)

// Registered is the answer of POST /v1/apps.
type Registered struct {
	GUID policy.AppID `json:"guid"`
}

// PathOpenAPI is the description of the API, for anybody.
const PathOpenAPI = "/v1/openapi.json"

// App is an entry of the registry.
type App struct {
	GUID      policy.AppID `json:"guid"`
	Name      string       `json:"name"`
	Space     string       `json:"space"`
	SpaceGUID string       `json:"space_guid"`
	Org       string       `json:"org"`
	OrgGUID   string       `json:"org_guid"`
	Instances int          `json:"instances"` // endpoints registered now
}

// Apps is the answer of GET /v1/apps.
type Apps struct {
	Apps []App `json:"apps"`
}

// MarshalJSON writes an empty list as [], never null.
func (a Apps) MarshalJSON() ([]byte, error) {
	type plain Apps
	a.Apps = orEmpty(a.Apps)
	return json.Marshal(plain(a))
}

// Cell is a cell or a silk peer as an operator sees it.
type Cell struct {
	Name     string       `json:"name"`
	Kind     PeerKind     `json:"kind"`
	Mode     TunnelMode   `json:"mode"`
	Underlay netip.Addr   `json:"underlay"`
	Port     uint16       `json:"port"`
	Subnet   netip.Prefix `json:"subnet"`
	// Of mode wireguard.
	Key           TunnelKey  `json:"key,omitzero"`
	NextKey       TunnelKey  `json:"next_key,omitzero"` // while it rotates its key
	WireGuardPort uint16     `json:"wireguard_port,omitempty"`
	Tunnel        netip.Addr `json:"tunnel,omitzero"`
	Generation    uint64     `json:"generation"`
	Renewed       time.Time  `json:"renewed,omitzero"`   // last renewal of the lease
	Expires       time.Time  `json:"expires,omitzero"`   // absent: never (silk peers)
	Acknowledged  Revision   `json:"acknowledged"`       // last revision published and cut by the cell
	Alive         bool       `json:"alive"`              // heard of within the heartbeat
	LastSeen      time.Time  `json:"last_seen,omitzero"` // absent: not since the server started
}

// Cells is the answer of GET /v1/cells.
type Cells struct {
	Cells []Cell `json:"cells"`
}

// MarshalJSON writes an empty list as [], never null.
func (c Cells) MarshalJSON() ([]byte, error) {
	type plain Cells
	c.Cells = orEmpty(c.Cells)
	return json.Marshal(plain(c))
}

// Endpoints is the answer of GET /v1/endpoints: every container of every cell,
// and the revision at which the list was read.
type Endpoints struct {
	Endpoints []Endpoint `json:"endpoints"`
	Revision  Revision   `json:"revision"`
}

// MarshalJSON writes an empty list as [], never null.
func (e Endpoints) MarshalJSON() ([]byte, error) {
	type plain Endpoints
	e.Endpoints = orEmpty(e.Endpoints)
	return json.Marshal(plain(e))
}

// orEmpty returns list, or an empty one in place of nil, which JSON would write
// as null.
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
