package api

import (
	"errors"
	"fmt"

	"tulle/policy"
)

// The original's texts for what a policy lacks. Those with numbers in them are
// made where they are found.
var (
	errNoPolicies = errors.New("missing policies")
	errNoPort     = errors.New("missing port")
	errTags       = errors.New("tags may not be specified")
)

const maxPort = 65535

// Domain checks the list and turns it into the domain's values. The rules and
// their order are the original's.
func (l Policies) Domain() ([]policy.Policy, error) {
	if len(l.Policies) == 0 {
		return nil, errNoPolicies
	}
	ps := make([]policy.Policy, len(l.Policies))
	for i, p := range l.Policies {
		var err error
		if ps[i], err = p.Domain(); err != nil {
			return nil, err
		}
	}
	return ps, nil
}

// Domain checks p and turns it into the domain's value.
func (p Policy) Domain() (policy.Policy, error) {
	return ends{
		source: p.Source, destination: p.Destination.ID,
		destinationTag: p.Destination.Tag, protocol: p.Destination.Protocol,
	}.domain(p.Destination.Ports.domain)
}

func (r Ports) domain() (policy.PortRange, error) {
	switch {
	case r.Start > r.End:
		return policy.PortRange{}, fmt.Errorf("invalid port range %d-%d, start must be less than or equal to end", r.Start, r.End)
	case r.Start < 0:
		return policy.PortRange{}, fmt.Errorf("invalid start port %d, must be in range 1-65535", r.Start)
	case r.Start == 0:
		return policy.PortRange{}, policy.ErrNoStart
	case r.End > maxPort:
		return policy.PortRange{}, fmt.Errorf("invalid end port %d, must be in range 1-65535", r.End)
	}
	return policy.PortRange{Start: uint16(r.Start), End: uint16(r.End)}, nil
}

// ends is what a policy of either version has besides its ports.
type ends struct {
	source         Source
	destination    policy.AppID
	destinationTag string
	protocol       string
}

// domain applies the rules around those of the ports, which differ by version.
func (e ends) domain(ports func() (policy.PortRange, error)) (policy.Policy, error) {
	if e.source.ID == "" {
		return policy.Policy{}, policy.ErrNoSource
	}
	if e.destination == "" {
		return policy.Policy{}, policy.ErrNoDestination
	}
	proto, err := policy.ParseProtocol(e.protocol)
	if err != nil {
		return policy.Policy{}, err
	}
	r, err := ports()
	if err != nil {
		return policy.Policy{}, err
	}
	if e.source.Tag != "" || e.destinationTag != "" {
		return policy.Policy{}, errTags
	}
	return policy.Policy{Source: e.source.ID, Destination: e.destination, Protocol: proto, Ports: r}, nil
}
