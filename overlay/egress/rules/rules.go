// Package rules says what one container may reach outside the overlay: the rules
// of its security groups, compiled once and asked at the beginning of every
// conversation. It is pure; [policy.SecurityRule.Allows] is its slow, obvious twin.
package rules

import (
	"fmt"
	"net/netip"
	"slices"
	"sort"

	"tulle/policy"
)

// Reason says how a Verdict came about.
type Reason uint8

// Reasons.
const (
	NoRule      Reason = iota // no rule allows it
	Allowed                   // a rule does
	DenyNetwork               // the destination is in a network that no rule opens
)

// String is the reason as a metric's label and in a log.
func (r Reason) String() string {
	return [...]string{"no_rule", "allowed", "deny_network"}[r]
}

// Verdict is what the rules say of one packet.
type Verdict struct {
	Reason Reason
	// Log: the rule that allows it wants that logged. Of several the last counts,
	// as in the original, which begins with the last.
	Log bool
	// Named: a rule that allows it has that very address, alone, among its
	// destinations: whoever wrote it meant this host.
	Named bool
	// Group is the name of the group whose rule that is.
	Group string
}

// Group is a security group's name and its rules.
type Group struct {
	Name  string
	Rules []policy.SecurityRule
}

// Set is a container's rules. It never changes; its methods allocate nothing.
type Set struct {
	elements []element // by first address
	furthest []netip.Addr
	deny     []netip.Prefix
}

// element is one part of a rule's destination with all that the rule says.
type element struct {
	first, last netip.Addr
	protocol    string // "all": any
	ports       [][2]uint16
	anyType     bool
	anyCode     bool
	typ, code   uint8
	log         bool
	order       int // of the rule in the whole list
	group       string
}

// Compile makes a Set of the groups' rules and of the networks that no rule
// opens. A bad rule is left out and has an error that names it; it blocks no other.
func Compile(groups []Group, deny []netip.Prefix) (*Set, []error) {
	s := &Set{deny: deny}
	var bad []error
	order := 0
	for _, g := range groups {
		for i, r := range g.Rules {
			order++
			elements, err := compile(r)
			if err != nil {
				bad = append(bad, fmt.Errorf("security group %q, rule %d is left out: %w", g.Name, i+1, err))
				continue
			}
			for _, e := range elements {
				e.order, e.group = order, g.Name
				s.elements = append(s.elements, e)
			}
		}
	}
	slices.SortStableFunc(s.elements, func(a, b element) int { return a.first.Compare(b.first) })
	s.furthest = make([]netip.Addr, len(s.elements))
	for i, e := range s.elements {
		s.furthest[i] = e.last
		if i > 0 && e.last.Less(s.furthest[i-1]) {
			s.furthest[i] = s.furthest[i-1]
		}
	}
	return s, bad
}

func compile(r policy.SecurityRule) ([]element, error) {
	if err := r.Check(); err != nil {
		return nil, err
	}
	spans, err := r.Spans()
	if err != nil {
		return nil, err
	}
	ports, err := r.PortSpans()
	if err != nil {
		return nil, err
	}
	protocol := r.Protocol
	if protocol == "icmpv6" {
		protocol = "icmp" // a packet's, whose destination says which; all of these are IPv6
	}
	wild := func(n int) bool { return n == -1 || n == 255 }
	all := make([]element, len(spans))
	for i, s := range spans {
		all[i] = element{first: s.First, last: s.Last, protocol: protocol, ports: ports, log: r.Log,
			anyType: wild(r.Type), anyCode: wild(r.Code), typ: uint8(r.Type), code: uint8(r.Code)}
	}
	return all, nil
}

// Judge says whether p may pass.
func (s *Set) Judge(p policy.Packet) Verdict {
	for _, d := range s.deny {
		if d.Contains(p.To) {
			return Verdict{Reason: DenyNetwork}
		}
	}
	var v Verdict
	last := 0
	// Everything behind begins beyond the address; everything before the first
	// whose furthest end falls short of it ends short of it.
	for i := sort.Search(len(s.elements), func(i int) bool { return p.To.Less(s.elements[i].first) }) - 1; i >= 0 && !s.furthest[i].Less(p.To); i-- {
		e := &s.elements[i]
		if e.last.Less(p.To) || !e.matches(&p) {
			continue
		}
		v.Reason = Allowed
		v.Named = v.Named || e.first == e.last
		if e.order > last {
			last, v.Log, v.Group = e.order, e.log, e.group
		}
	}
	return v
}

func (e *element) matches(p *policy.Packet) bool {
	switch {
	case e.protocol == "all":
		return e.first.BitLen() == p.To.BitLen()
	case e.protocol != p.Protocol || e.first.BitLen() != p.To.BitLen():
		return false
	case e.protocol == "icmp":
		return (e.anyType || e.typ == p.Type) && (e.anyCode || e.code == p.Code)
	}
	for _, r := range e.ports {
		if r[0] <= p.Port && p.Port <= r[1] {
			return true
		}
	}
	return false
}
