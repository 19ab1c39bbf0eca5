package policy

import (
	"errors"
	"fmt"
)

// Allowed is the evaluator: whether one of ps lets src open a flow to dst on
// that protocol and port. It walks the list; it is what every faster answer is
// held against.
func Allowed(ps []Policy, src, dst AppID, proto Protocol, port uint16) bool {
	for _, p := range ps {
		if p.Source == src && p.Destination == dst && p.Protocol == proto && p.Ports.Contains(port) {
			return true
		}
	}
	return false
}

// What a policy may lack. The texts are the original's.
var (
	ErrNoSource      = errors.New("missing source id")
	ErrNoDestination = errors.New("missing destination id")
	ErrNoStart       = errors.New("missing start port")
)

// Validate checks what the types do not already hold: two named ends, a known
// protocol, ports of 1 or more in the right order. A source that is its own
// destination is legal: an application talking to itself needs a policy too.
func (p Policy) Validate() error {
	if p.Source == "" {
		return ErrNoSource
	}
	if p.Destination == "" {
		return ErrNoDestination
	}
	if p.Protocol != TCP && p.Protocol != UDP {
		return ErrProtocol
	}
	return p.Ports.Validate()
}

// Validate checks that the range runs from 1 or more upwards.
func (r PortRange) Validate() error {
	if r.Start > r.End {
		return fmt.Errorf("invalid port range %d-%d, start must be less than or equal to end", r.Start, r.End)
	}
	if r.Start == 0 {
		return ErrNoStart
	}
	return nil
}
