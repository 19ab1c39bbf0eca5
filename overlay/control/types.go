package control

import (
	"net/netip"

	"tulle/policy"
	"tulle/policy/api"
)

// Lifeline says what ends an attach besides Detach.
type Lifeline string

// Lifelines.
const (
	// LifelineConnection: the connection the attach came on; its end is a detach.
	LifelineConnection Lifeline = "connection"
	// LifelinePidfd: a second descriptor, a pidfd; the process's end is a detach.
	LifelinePidfd Lifeline = "pidfd"
	// LifelineNone: only Detach or GC ends it, and List says so.
	LifelineNone Lifeline = "none"
)

// Attach hands a container's TUN descriptor, or a guest's TAP, to the daemon. The descriptor
// travels beside the message (SCM_RIGHTS), first, then the pidfd if there is one,
// then the sockets of TLS.
type Attach struct {
	Container string     `json:"container"` // unique on the cell
	App       api.AppRef `json:"app"`
	Instance  string     `json:"instance,omitempty"`
	Device    string     `json:"device"` // name inside the container's namespace, e.g. eth0
	Lifeline  Lifeline   `json:"lifeline"`
	// Network is the runtime's name of the network that the container is attached
	// to. GC of that network ends what its runtime forgot; "" is never collected.
	Network string `json:"network,omitempty"`
	// Address asks for that one, if it is free; invalid: any.
	Address netip.Addr `json:"address,omitzero"`
	// Bandwidth limits what the container sends and receives; the zero value does not.
	Bandwidth Bandwidth `json:"bandwidth,omitzero"`
	// Workload chooses the security groups that hold: "" is app.
	Workload policy.Workload `json:"workload,omitempty"`
	// Ports of the host that lead to the container.
	Ports []Port `json:"ports,omitempty"`
	// Rules are what the container may reach outside the overlay where the cell does
	// not follow the control plane's security groups; else they are not looked at.
	Rules []policy.SecurityRule `json:"rules,omitempty"`
	// Resume asks for the endpoint that the daemon's journal has for Container:
	// the daemon was restarted and the attacher kept its duplicate.
	Resume bool `json:"resume,omitempty"`
	// TLS is to be terminated for the container; nil: it is not.
	TLS *TLS `json:"tls,omitempty"`
}

// Bandwidth is a token bucket for each direction, in bits a second and bits, by the
// names of the CNI's capability. Ingress is what the container receives. Of a pair
// both are given or neither.
type Bandwidth struct {
	IngressRate  uint64 `json:"ingressRate,omitempty"`
	IngressBurst uint64 `json:"ingressBurst,omitempty"`
	EgressRate   uint64 `json:"egressRate,omitempty"`
	EgressBurst  uint64 `json:"egressBurst,omitempty"`
}

// Attached is the answer: what the attacher configures on the device.
type Attached struct {
	Address     netip.Prefix `json:"address"`           // /32
	Address6    netip.Prefix `json:"address6,omitzero"` // /128; not valid: no IPv6
	Resolver    netip.Addr   `json:"resolver"`          // 169.254.0.2
	MTU         int          `json:"mtu"`
	App         policy.AppID `json:"app"`
	Incarnation uint64       `json:"incarnation"`
	Resumed     bool         `json:"resumed,omitempty"` // the endpoint was there; nothing to configure
	// Mask are the daemon's own directories (state, credentials, socket). An
	// attacher whose container shares the host's file system hides them from it.
	Mask []string `json:"mask,omitempty"`
	// Trust is what containers trust each other's certificates by, PEM.
	Trust string `json:"trust,omitempty"`
}

// Detach ends an endpoint. Detaching what is not there succeeds.
type Detach struct {
	Container string `json:"container"`
}

// GC ends the sender's endpoints of a network that are not in Keep: those whose
// runtime died between attach and detach.
type GC struct {
	Network string   `json:"network"`
	Keep    []string `json:"keep"` // containers
}

// Collected is what a GC ended.
type Collected struct {
	Containers []string `json:"containers"`
}

// Endpoint is a local container in a List.
type Endpoint struct {
	Container   string       `json:"container"`
	Address     netip.Addr   `json:"address"`
	Address6    netip.Addr   `json:"address6,omitzero"`
	App         policy.AppID `json:"app"`
	AppName     string       `json:"app_name,omitempty"`
	Space       string       `json:"space,omitempty"`
	Org         string       `json:"org,omitempty"`
	Instance    string       `json:"instance,omitempty"`
	Tag         policy.Tag   `json:"tag"`
	Incarnation uint64       `json:"incarnation"`
	Lifeline    Lifeline     `json:"lifeline"`
	Waiting     bool         `json:"waiting,omitempty"` // journalled, its attacher has not come back yet
	UID         uint32       `json:"uid"`               // who attached it
	Network     string       `json:"network,omitempty"` // its runtime's name for it
	Bandwidth   Bandwidth    `json:"bandwidth,omitzero"`
	TLS         *TLS         `json:"tls,omitempty"` // what is terminated for it, or why it is not
}

// Status is the daemon's state at a glance.
type Status struct {
	Cell     string         `json:"cell"`
	Lease    netip.Prefix   `json:"lease"`
	Underlay netip.AddrPort `json:"underlay"`
	PID      int            `json:"pid"`
	Mode     api.TunnelMode `json:"mode"`
	// Of mode wireguard: where the cell listens for it, its public key, its address
	// inside the tunnels, and the peers that speak vxlan to it all the same.
	WireGuard netip.AddrPort `json:"wireguard,omitzero"`
	Key       api.TunnelKey  `json:"key,omitzero"`
	Rotation  RotationStep   `json:"rotation,omitempty"` // of the key; "": none is under way
	Tunnel    netip.Addr     `json:"tunnel,omitzero"`
	Plain     []string       `json:"plain,omitempty"`
	// Whether post-quantum secrets are made, and the peers that make none.
	PostQuantum string         `json:"post_quantum,omitempty"`
	NoSecret    []string       `json:"no_secret,omitempty"`
	Epoch       api.Epoch      `json:"epoch"`
	Revision    api.Revision   `json:"revision"`
	Connected   bool           `json:"connected"` // to the policy server
	Policies    int            `json:"policies"`
	Flows       int            `json:"flows"`
	Endpoints   []Endpoint     `json:"endpoints"`
	Remote      []api.Endpoint `json:"remote"` // other cells' endpoints that concern this cell
	Peers       []api.Peer     `json:"peers"`
}
