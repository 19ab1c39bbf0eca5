package api

import (
	"fmt"

	"tulle/policy"
)

// policiesV0 is the v0 list: as v1, with one port in place of a range.
type policiesV0 struct {
	Total    int        `json:"total_policies"`
	Policies []policyV0 `json:"policies"`
}

type policyV0 struct {
	Source      Source        `json:"source"`
	Destination destinationV0 `json:"destination"`
}

type destinationV0 struct {
	ID       policy.AppID `json:"id"`
	Tag      string       `json:"tag,omitempty"`
	Protocol string       `json:"protocol"`
	Port     int          `json:"port"`
}

// Domain checks the list and turns it into the domain's values.
func (l policiesV0) Domain() ([]policy.Policy, error) {
	if len(l.Policies) == 0 {
		return nil, errNoPolicies
	}
	ps := make([]policy.Policy, len(l.Policies))
	for i, p := range l.Policies {
		var err error
		ps[i], err = ends{
			source: p.Source, destination: p.Destination.ID,
			destinationTag: p.Destination.Tag, protocol: p.Destination.Protocol,
		}.domain(p.Destination.ports)
		if err != nil {
			return nil, err
		}
	}
	return ps, nil
}

// ports is the range of one port. The original has no upper bound here and
// stores 70000; no packet can carry it, so it is refused.
func (d destinationV0) ports() (policy.PortRange, error) {
	switch {
	case d.Port < 0 || d.Port > maxPort:
		return policy.PortRange{}, fmt.Errorf("invalid port %d, must be in range 1-65535", d.Port)
	case d.Port == 0:
		return policy.PortRange{}, errNoPort
	}
	return policy.PortRange{Start: uint16(d.Port), End: uint16(d.Port)}, nil
}

// newPoliciesV0 keeps the policies of one port.
func newPoliciesV0(ps []policy.Policy) policiesV0 {
	list := make([]policyV0, 0, len(ps))
	for _, p := range ps {
		if p.Ports.Start != p.Ports.End {
			continue
		}
		list = append(list, policyV0{
			Source: Source{ID: p.Source},
			Destination: destinationV0{
				ID: p.Destination, Protocol: p.Protocol.String(), Port: int(p.Ports.Start),
			},
		})
	}
	return policiesV0{Total: len(list), Policies: list}
}
