package egress

import (
	"net/netip"

	"tulle/overlay/egress/rules"
	"tulle/overlay/fib"
	"tulle/overlay/netcfg"
	"tulle/policy"
)

// Verdict says whether a conversation may be, and why not.
type Verdict uint8

// Verdicts.
const (
	Allowed Verdict = iota
	SpecialAddress
	HostAddress
	GuardedPort
	CellAddress
	DenyNetwork
	NoRule
	NoRoute
	RateLimit
	ConnectionLimit
	Ended // the container is gone

	numVerdicts
)

var verdicts = [numVerdicts]struct{ name, explanation string }{
	Allowed:         {"allowed", "A rule or a host service allows it."},
	SpecialAddress:  {"special_address", "The address means this host, nobody, or no single host; no rule opens it."},
	HostAddress:     {"host_address", "The address is this host's own, or a broadcast or anycast address; only an entry of host_services opens it."},
	GuardedPort:     {"guarded_port", "The port is a tunnel's, or of the control plane or its metrics; no rule opens it."},
	CellAddress:     {"cell_address", "The address is a cell's on the underlay; only a rule with exactly this address opens it."},
	DenyNetwork:     {"deny_network", "The address is in one of the cell's deny_networks."},
	NoRule:          {"no_rule", "No rule of the container's security groups allows it."},
	NoRoute:         {"no_route", "This host has no route to the address."},
	RateLimit:       {"rate_limit", "The container opens connections to this destination faster than it may."},
	ConnectionLimit: {"connection_limit", "The container has as many connections as it may have, to this destination or in all."},
	Ended:           {"ended", "The container is gone."},
}

// String is the verdict as a metric's label and in a log.
func (v Verdict) String() string { return verdicts[v].name }

// Explain is the verdict in a sentence.
func (v Verdict) Explain() string { return verdicts[v].explanation }

// HostService is an address of this host that containers may reach.
type HostService struct {
	Addr     netip.AddrPort
	Protocol string // tcp or udp
}

// Surroundings is what must not be reached through rules alone.
type Surroundings struct {
	// Cells are the underlay addresses of all cells, this one included.
	Cells map[netip.Addr]bool
	// Guarded are what no rule opens: tunnel ports of cells, control and metrics
	// ports.
	Guarded map[HostService]bool
	// GuardedOnCells are ports of either protocol guarded on every cell's address,
	// and, for host services, on this host.
	GuardedOnCells map[uint16]bool
}

// special is what never names one other host, in IPv4 and IPv6 (RFC 6890).
var special = prefixes(
	"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4",
	"::/96", "ff00::/8", "fe80::/10", "fec0::/10",
	// Those that hold an IPv4 address: mapped, translated, NAT64, 6to4 and Teredo. What
	// this host, or who is next on the way, makes of them could be anybody's.
	"::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32",
	// Overlays' own.
	fib.Network6.String(),
)

func prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, s := range list {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}

// isSpecial reports whether no rule can open the address. addr is unmapped.
func isSpecial(addr netip.Addr) bool {
	for _, p := range special {
		if p.Contains(addr) {
			return true
		}
	}
	return !addr.IsValid() || addr.Zone() != ""
}

// judgement is a verdict and what of it is to be logged.
type judgement struct {
	Verdict
	log   bool
	group string
}

// judge says whether a container may reach p, as things are now. It is asked before
// a socket is connected, after, and whenever rules or surroundings change.
func (e *Egress) judge(set *rules.Set, p policy.Packet) judgement {
	p.To = p.To.Unmap()
	around := e.around.Load()
	at := HostService{netip.AddrPortFrom(p.To, p.Port), p.Protocol}
	// What must be nobody's is looked at first: an operator's list does not open it.
	if around.Guarded[at] || around.GuardedOnCells[p.Port] && p.Protocol != "icmp" && around.Cells[p.To] {
		return judgement{Verdict: GuardedPort}
	}
	if e.isHostService(at) {
		if around.GuardedOnCells[p.Port] || e.forwards.takes(at) {
			return judgement{Verdict: GuardedPort}
		}
		return judgement{}
	}
	if isSpecial(p.To) {
		return judgement{Verdict: SpecialAddress}
	}
	kind, err := e.router.Kind(p.To)
	switch {
	case err != nil:
		e.opt.Log.Error("nothing leaves the overlay while the host's routes cannot be asked", "err", err)
		return judgement{Verdict: NoRoute}
	case kind == netcfg.RouteNone:
		// Of a destination that the rules forbid that is no secret worth telling.
		if v := set.Judge(p); v.Reason == rules.Allowed {
			return judgement{Verdict: NoRoute}
		}
	case kind != netcfg.RouteAway:
		return judgement{Verdict: HostAddress}
	}
	v := set.Judge(p)
	switch {
	case v.Reason == rules.DenyNetwork:
		return judgement{Verdict: DenyNetwork}
	case v.Reason != rules.Allowed:
		return judgement{Verdict: NoRule}
	case around.Cells[p.To] && !v.Named:
		return judgement{Verdict: CellAddress}
	}
	return judgement{log: v.Log, group: v.Group}
}

func (e *Egress) isHostService(s HostService) bool {
	for _, h := range e.opt.HostServices {
		if h == s {
			return true
		}
	}
	return false
}
