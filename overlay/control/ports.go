package control

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"

	"tulle/policy"
)

// Port is a port of the host that leads to one of a container's.
type Port struct {
	Protocol string     `json:"protocol,omitempty"` // tcp or udp; "" is tcp
	HostIP   netip.Addr `json:"host_ip,omitzero"`   // invalid: every IPv4 address of the host
	HostPort uint16     `json:"host_port"`
	// Port is the container's. That of TLS is asked for by its name, TLS, and not by
	// its number.
	Port uint16 `json:"port,omitempty"`
	TLS  bool   `json:"tls,omitempty"`
	// Keep leaves the host's port bound for some minutes when the container is gone,
	// for one of the same name that comes back.
	Keep bool `json:"keep,omitempty"`
}

// PortAdd adds a port to a container that is attached.
type PortAdd struct {
	Container string `json:"container"`
	Port
}

// PortRemove takes one away: Protocol, HostIP and HostPort say which.
type PortRemove struct {
	Container string `json:"container"`
	Port
}

// ListedPort is a port in use.
type ListedPort struct {
	Port
	Container string       `json:"container"`
	Address   netip.Addr   `json:"address"`
	App       policy.AppID `json:"app"`
	AppName   string       `json:"app_name,omitempty"`
	Waiting   bool         `json:"waiting,omitempty"` // its container is gone and may come back
}

// NATWho asks whose a source port of the host was.
type NATWho struct {
	Source netip.AddrPort `json:"source"` // an unspecified address is any of the host's
	At     time.Time      `json:"at,omitzero"`
}

// NATFound is a conversation with the outside.
type NATFound struct {
	Protocol  string         `json:"protocol"`
	Source    netip.AddrPort `json:"source"`
	Remote    netip.AddrPort `json:"remote"`
	Begin     time.Time      `json:"begin"`
	End       time.Time      `json:"end,omitzero"`   // zero: it lives, or is lost
	Lost      bool           `json:"lost,omitempty"` // the daemon ended before it saw the end
	Container string         `json:"container"`
	Address   netip.Addr     `json:"address"`
	App       policy.AppID   `json:"app"`
	AppName   string         `json:"app_name,omitempty"`
	Space     string         `json:"space,omitempty"`
	Org       string         `json:"org,omitempty"`
}

const (
	maxPorts = 1024
	maxRules = 4096
)

func (a Attach) checkOutside() error {
	switch a.Workload {
	case "", policy.WorkloadApp, policy.WorkloadTask, policy.WorkloadStaging:
	default:
		return Errorf(CodeBadRequest, "workload %.32q is none of app, task and staging", a.Workload)
	}
	if len(a.Ports) > maxPorts {
		return Errorf(CodeBadRequest, "%d ports, at most %d are possible", len(a.Ports), maxPorts)
	}
	if len(a.Rules) > maxRules {
		return Errorf(CodeBadRequest, "%d rules, at most %d are possible", len(a.Rules), maxRules)
	}
	for i, p := range a.Ports {
		if err := p.check(); err != nil {
			return err
		}
		// One of the two would lead nowhere, and nobody would be told which.
		if slices.ContainsFunc(a.Ports[:i], func(q Port) bool { return q.host() == p.host() }) {
			return Errorf(CodeBadRequest, "port %v is asked for twice, which leads to one port of the container", p.host())
		}
	}
	return nil
}

// hostPort is a port of the host, written in one way.
type hostPort struct {
	at       netip.AddrPort
	protocol string
}

func (h hostPort) String() string { return h.at.String() + "/" + h.protocol }

func (p Port) host() hostPort {
	addr := p.HostIP.Unmap()
	if !addr.IsValid() {
		addr = netip.IPv4Unspecified()
	}
	return hostPort{netip.AddrPortFrom(addr, p.HostPort), cmp.Or(p.Protocol, "tcp")}
}

func (p Port) check() error {
	if p.Protocol != "" && p.Protocol != "tcp" && p.Protocol != "udp" {
		return Errorf(CodeBadRequest, "port %d: protocol %.32q is neither tcp nor udp", p.HostPort, p.Protocol)
	}
	if p.HostPort == 0 {
		return Errorf(CodeBadRequest, "the host's port of a forward is missing")
	}
	return nil
}

// AddPort gives a container one more port of the host.
func (c *Client) AddPort(ctx context.Context, p PortAdd) error { return c.do(ctx, opPortAdd, p, nil) }

// RemovePort takes it away again.
func (c *Client) RemovePort(ctx context.Context, p PortRemove) error {
	return c.do(ctx, opPortRemove, p, nil)
}

// Ports are those in use, by the host's address.
func (c *Client) Ports(ctx context.Context) ([]ListedPort, error) {
	var got []ListedPort
	err := c.do(ctx, opPortList, nil, &got)
	return got, err
}

// NATWho says whose a source port of the host was.
func (c *Client) NATWho(ctx context.Context, q NATWho) ([]NATFound, error) {
	var got []NATFound
	err := c.do(ctx, opNATWho, q, &got)
	return got, err
}
