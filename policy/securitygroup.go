package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// SecurityGroup says which addresses outside the overlay the containers of some
// spaces may reach. A default group holds for every space.
type SecurityGroup struct {
	GUID           string
	Name           string
	Rules          []SecurityRule
	StagingDefault bool
	RunningDefault bool
	StagingSpaces  []string // GUIDs
	RunningSpaces  []string
}

// SecurityRule allows what goes to Destination: addresses, prefixes and ranges of
// IPv4 and IPv6 ("10.0.0.1", "10.0.0.0/24", "10.0.0.1-10.0.0.9"), separated by
// commas. Ports (tcp, udp) are ports and ranges, separated by commas; Type and Code
// are ICMP's, and ICMPv6's for destinations of IPv6, -1 being any. Protocol icmpv6 is
// icmp with such destinations alone. The JSON is that of the original's rules, all
// fields present.
//
// Blanks around ports, and a type or code in a rule of another protocol, mean nothing:
// a Cloud Controller lets them through, and the original's agent ignores them.
type SecurityRule struct {
	Protocol    string `json:"protocol"` // tcp, udp, icmp, icmpv6 or all
	Destination string `json:"destination"`
	Ports       string `json:"ports"`
	Type        int    `json:"type"`
	Code        int    `json:"code"`
	Description string `json:"description"`
	Log         bool   `json:"log"`
}

// Check names the first field that breaks the format, with its value
// (reference: data-plane, 7.3).
func (r SecurityRule) Check() error {
	switch r.Protocol {
	case "tcp", "udp":
		if err := checkPorts(r.Ports); err != nil {
			return fmt.Errorf("ports %q: %w", r.Ports, err)
		}
	case "icmp", "icmpv6", "all":
		if r.Ports != "" {
			return fmt.Errorf("ports %q: protocol %s has none", r.Ports, r.Protocol)
		}
	default:
		return fmt.Errorf("protocol %q: must be tcp, udp, icmp, icmpv6 or all", r.Protocol)
	}
	for _, f := range []struct {
		name  string
		value int
	}{{"type", r.Type}, {"code", r.Code}} {
		if r.isICMP() && (f.value < -1 || f.value > 255) {
			return fmt.Errorf("%s %d: must be -1 (any) to 255", f.name, f.value)
		}
	}
	if err := checkDestination(r.Destination); err != nil {
		return fmt.Errorf("destination %q: %w", r.Destination, err)
	}
	if r.Protocol == "icmpv6" && strings.Contains(r.Destination, ".") {
		return fmt.Errorf("destination %q: protocol icmpv6 goes to IPv6 addresses alone", r.Destination)
	}
	return nil
}

func (r SecurityRule) isICMP() bool { return r.Protocol == "icmp" || r.Protocol == "icmpv6" }

func checkDestination(list string) error {
	if list == "" {
		return errors.New("is missing")
	}
	for part := range strings.SplitSeq(list, ",") {
		if err := checkAddresses(part); err != nil {
			return fmt.Errorf("%q %w", part, err)
		}
	}
	return nil
}

func checkAddresses(s string) error {
	if first, last, isRange := strings.Cut(s, "-"); isRange {
		a, aErr := netip.ParseAddr(first)
		b, bErr := netip.ParseAddr(last)
		switch {
		case aErr != nil || bErr != nil || !plain(a) || !plain(b) || a.Is4() != b.Is4():
			return errors.New("is not a range of IPv4 or of IPv6 addresses")
		case b.Less(a):
			return errors.New("starts behind its end")
		}
		return nil
	}
	if p, err := netip.ParsePrefix(s); err == nil && plain(p.Addr()) {
		return nil
	}
	if a, err := netip.ParseAddr(s); err == nil && plain(a) {
		return nil
	}
	return errors.New("is not an IPv4 or IPv6 address, a CIDR or a range, without blanks, zones and IPv4 mapped into IPv6")
}

// plain is false for an address that means one only here, or one of the other family.
func plain(a netip.Addr) bool { return a.Zone() == "" && !a.Is4In6() }

func checkPorts(list string) error {
	if list == "" {
		return errors.New("is missing")
	}
	for part := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		start, err := checkPort(first)
		if err != nil {
			return fmt.Errorf("%q %w", part, err)
		}
		end, err := checkPort(last)
		if err != nil {
			return fmt.Errorf("%q %w", part, err)
		}
		if start > end {
			return fmt.Errorf("%q starts behind its end", part)
		}
	}
	return nil
}

func checkPort(s string) (int, error) {
	s = strings.TrimSpace(s)
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > 65535 || s[0] == '+' {
		return 0, errors.New("is not a port from 1 to 65535, a range or a list of these")
	}
	return n, nil
}
