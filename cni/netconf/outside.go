package netconf

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"tulle/overlay/control"
	"tulle/policy"
)

// PortMapping is a published port, in the CNI convention's spelling and in Garden's.
type PortMapping struct {
	HostPort      uint16 `json:"hostPort,omitempty"`
	ContainerPort uint16 `json:"containerPort,omitempty"`
	Protocol      string `json:"protocol,omitempty"`
	HostIP        string `json:"hostIP,omitempty"`

	GardenHost      uint16 `json:"host_port,omitempty"`
	GardenContainer uint16 `json:"container_port,omitempty"`
}

// ports are the host's that lead to the container: the runtime's and those that the
// network gives every container of it.
func (c *Conf) ports() ([]control.Port, error) {
	var all []control.Port
	for _, m := range append(append([]PortMapping{}, c.Runtime.PortMappings...), c.Ports...) {
		if m.GardenHost != 0 || m.GardenContainer != 0 {
			m.HostPort, m.ContainerPort = m.GardenHost, m.GardenContainer
		}
		if m.HostPort == 0 {
			continue // a port that is told of and not published
		}
		p := control.Port{Protocol: strings.ToLower(m.Protocol), HostPort: m.HostPort, Port: m.ContainerPort, Keep: c.KeepPorts}
		if m.HostIP != "" {
			var err error
			if p.HostIP, err = netip.ParseAddr(m.HostIP); err != nil {
				return nil, fmt.Errorf("network %s: port %d: hostIP %q is no address", c.Name, m.HostPort, m.HostIP)
			}
		}
		if !slices.Contains(all, p) { // the network's own, which the runtime may name as well
			all = append(all, p)
		}
	}
	return all, nil
}

// NetOutRule is Garden's rule about what a container may reach.
type NetOutRule struct {
	Protocol uint8          `json:"protocol"` // 0 all, 1 tcp, 2 udp, 3 icmp
	Networks []NetOutRange  `json:"networks"`
	Ports    []NetOutPorts  `json:"ports"`
	ICMPs    *NetOutControl `json:"icmps"`
	Log      bool           `json:"log"`
}

// NetOutRange is a range of addresses; without an end, one address.
type NetOutRange struct {
	Start string `json:"start"`
	End   string `json:"end"`
}

// NetOutPorts is a range of ports; without an end, one port.
type NetOutPorts struct {
	Start uint16 `json:"start"`
	End   uint16 `json:"end"`
}

// NetOutControl is an ICMP type; without a code, any.
type NetOutControl struct {
	Type int  `json:"type"`
	Code *int `json:"code"`
}

// Rule is the rule in a security group's words. false: it allows nothing, as the
// original makes nothing of a rule without networks. What is wrong in it the cell
// says, of this rule alone.
func (r NetOutRule) Rule() (policy.SecurityRule, bool, error) {
	out := policy.SecurityRule{Log: r.Log}
	var to []string
	for _, n := range r.Networks {
		to = append(to, span(n.Start, n.End))
	}
	if len(to) == 0 {
		return out, false, nil
	}
	out.Destination = strings.Join(to, ",")
	switch r.Protocol {
	case 0:
		out.Protocol = "all"
	case 1, 2:
		out.Protocol, out.Ports = []string{"tcp", "udp"}[r.Protocol-1], "1-65535"
		var ports []string
		for _, p := range r.Ports {
			ports = append(ports, span(strconv.Itoa(int(p.Start)), strconv.Itoa(int(p.End))))
		}
		if len(ports) > 0 {
			out.Ports = strings.Join(ports, ",")
		}
	case 3:
		out.Protocol, out.Type, out.Code = "icmp", -1, -1
		if r.ICMPs != nil {
			out.Type = r.ICMPs.Type
			if r.ICMPs.Code != nil {
				out.Code = *r.ICMPs.Code
			}
		}
	default:
		return out, false, fmt.Errorf("protocol %d is none of 0 (all), 1 (tcp), 2 (udp) and 3 (icmp)", r.Protocol)
	}
	return out, true, nil
}

func span(start, end string) string {
	if end == "" || end == "0" || end == start {
		return start
	}
	return start + "-" + end
}

// rules are Garden's of the container.
func (c *Conf) rules() ([]policy.SecurityRule, error) {
	var all []policy.SecurityRule
	for i, r := range c.Runtime.NetOutRules {
		rule, is, err := r.Rule()
		if err != nil {
			return nil, fmt.Errorf("network %s: netOutRules[%d]: %w", c.Name, i, err)
		}
		if is {
			all = append(all, rule)
		}
	}
	return all, nil
}
