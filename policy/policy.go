package policy

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// AppID is an application's GUID: the unit of policy. It survives restarts,
// crashes and redeploys. The original does not check that it is a GUID, and
// neither do we: any non-empty string names an application.
type AppID string

// Tag is the number of an application in the VXLAN-GBP header. On the wire it
// has 16 bits; inside the program it is wider so that a larger space, agreed
// between cells, needs no change of type.
type Tag uint32

// NoTag marks an application that is in no policy, or a packet without identity.
const NoTag Tag = 0

// MaxTag is the largest tag that fits the wire format
// (draft-smith-vxlan-group-policy, 16-bit group policy id).
const MaxTag Tag = 0xFFFF

// String is the tag as the policy API writes it: upper-case hex, four digits.
func (t Tag) String() string { return fmt.Sprintf("%04X", uint32(t)) }

// ParseTag reads the form String writes.
func ParseTag(s string) (Tag, error) {
	n, err := strconv.ParseUint(s, 16, 32)
	if err != nil {
		return NoTag, fmt.Errorf("tag %q: not a hexadecimal number", s)
	}
	return Tag(n), nil
}

// Protocol is an IP protocol number (IANA). Policies know TCP and UDP.
type Protocol uint8

// The protocols a policy may name.
const (
	TCP Protocol = 6
	UDP Protocol = 17
)

// String is the protocol's name in the policy API.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	}
	return strconv.Itoa(int(p))
}

// ErrProtocol is the original's text for anything but "tcp" and "udp".
var ErrProtocol = errors.New("invalid destination protocol, specify either udp or tcp")

// ParseProtocol reads "tcp" or "udp", exactly; the API is case-sensitive.
func ParseProtocol(s string) (Protocol, error) {
	switch s {
	case "tcp":
		return TCP, nil
	case "udp":
		return UDP, nil
	}
	return 0, ErrProtocol
}

// PortRange is Start to End, both included, 1 to 65535.
type PortRange struct{ Start, End uint16 }

// Contains reports whether port lies in the range.
func (r PortRange) Contains(port uint16) bool { return r.Start <= port && port <= r.End }

// String is "8080" or "8080-8090".
func (r PortRange) String() string {
	if r.Start == r.End {
		return strconv.Itoa(int(r.Start))
	}
	return strconv.Itoa(int(r.Start)) + "-" + strconv.Itoa(int(r.End))
}

// Policy allows Source to open flows to Destination on Protocol and Ports.
// There is nothing but allow: what no policy names is denied. Two policies are
// the same exactly when all fields are equal, so Policy is a map key.
type Policy struct {
	Source      AppID
	Destination AppID
	Protocol    Protocol
	Ports       PortRange
}

// String reads like a sentence: "web -> db tcp 5432".
func (p Policy) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s -> %s %s %s", p.Source, p.Destination, p.Protocol, p.Ports)
	return b.String()
}
