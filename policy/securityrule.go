package policy

import (
	"net/netip"
	"slices"
	"strings"
)

// Packet is what a security rule looks at: where something goes outside the
// overlay. Port is of tcp and udp, Type and Code of icmp, which is ICMPv6 where To is
// of IPv6.
type Packet struct {
	Protocol   string // tcp, udp or icmp
	To         netip.Addr
	Port       uint16
	Type, Code uint8
}

// Allows reports whether the rule lets p pass: the obvious evaluation, word by
// word, that faster ones are held against. A rule that Check refuses allows nothing.
func (r SecurityRule) Allows(p Packet) bool {
	if r.Check() != nil || r.Protocol != "all" && strings.TrimSuffix(r.Protocol, "v6") != p.Protocol {
		return false
	}
	within := func(part string) bool {
		first, last, _ := bounds(part)
		return first.BitLen() == p.To.BitLen() && !p.To.Less(first) && !last.Less(p.To)
	}
	if !slices.ContainsFunc(strings.Split(r.Destination, ","), within) {
		return false
	}
	switch r.Protocol {
	case "tcp", "udp":
		return slices.ContainsFunc(strings.Split(r.Ports, ","), func(part string) bool {
			first, last, isRange := strings.Cut(part, "-")
			if !isRange {
				last = first
			}
			start, _ := checkPort(first)
			end, _ := checkPort(last)
			return start <= int(p.Port) && int(p.Port) <= end
		})
	case "icmp", "icmpv6":
		// 255 is what the original makes of -1.
		anyType, anyCode := r.Type == -1 || r.Type == 255, r.Code == -1 || r.Code == 255
		return (anyType || r.Type == int(p.Type)) && (anyCode || r.Code == int(p.Code))
	}
	return true
}

// bounds is the first and the last address of one part of a rule's destination.
func bounds(s string) (first, last netip.Addr, err error) {
	if a, b, isRange := strings.Cut(s, "-"); isRange {
		if first, err = netip.ParseAddr(a); err == nil {
			last, err = netip.ParseAddr(b)
		}
		return first, last, err
	}
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Masked().Addr(), lastOf(p), nil
	}
	first, err = netip.ParseAddr(s)
	return first, first, err
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Span is a range of addresses, both ends in it.
type Span struct{ First, Last netip.Addr }

// Spans are the ranges of the rule's destination.
func (r SecurityRule) Spans() ([]Span, error) {
	if err := checkDestination(r.Destination); err != nil {
		return nil, err
	}
	var all []Span
	for part := range strings.SplitSeq(r.Destination, ",") {
		first, last, err := bounds(part)
		if err != nil {
			return nil, err
		}
		all = append(all, Span{first, last})
	}
	return all, nil
}

// PortSpans are the ranges of the rule's ports; none for icmp and all.
func (r SecurityRule) PortSpans() ([][2]uint16, error) {
	if r.Ports == "" {
		return nil, nil
	}
	if err := checkPorts(r.Ports); err != nil {
		return nil, err
	}
	var all [][2]uint16
	for part := range strings.SplitSeq(r.Ports, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		start, _ := checkPort(first)
		end, _ := checkPort(last)
		all = append(all, [2]uint16{uint16(start), uint16(end)})
	}
	return all, nil
}

// Workload is which of the groups' two lists holds for a container.
type Workload string

// Workloads: an app's or a task's container has the running groups. A container
// of none of these has no rules, and reaches nothing.
const (
	WorkloadApp     Workload = "app"
	WorkloadTask    Workload = "task"
	WorkloadStaging Workload = "staging"
)

// HoldsFor reports whether the group is one of a container's: for its workload,
// and for every space or for one of spaces, by which the container's is known.
func (g SecurityGroup) HoldsFor(w Workload, spaces ...string) bool {
	var all bool
	var bound []string
	switch w {
	case WorkloadApp, WorkloadTask:
		all, bound = g.RunningDefault, g.RunningSpaces
	case WorkloadStaging:
		all, bound = g.StagingDefault, g.StagingSpaces
	}
	return all || slices.ContainsFunc(bound, func(s string) bool { return s != "" && slices.Contains(spaces, s) })
}
