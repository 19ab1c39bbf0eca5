// Package dataplane measures the way of the packets: two containers, on one cell
// or on two, once over Tulle and once over what it is held against, on the same
// kind of link, with the same generators, one run after the other.
package dataplane

import (
	"tulle/cmd/tulle-bench/internal/bench"
	"tulle/cmd/tulle-bench/internal/traffic"
)

// Scenarios are those of this package.
func Scenarios() []bench.Scenario {
	return []bench.Scenario{crossCellVXLAN(), crossCellPlainNIC(), crossCellWireGuard(), sameCell(),
		requestResponse(), newConnections(), datagrams(), crowd(), peers(), unprivileged(), memory(), names(), egress(), forward()}
}

// Roles are what its scenarios need in other processes.
func Roles() []bench.Role {
	return []bench.Role{traffic.Role(), {Name: wireguardRole, Run: beWireGuard}, {Name: dnsRole, Run: dnsGenerator},
		{Name: nobodyRole, Run: beNobody}, {Name: containerRole, Run: beContainer}, {Name: idleRole, Run: beIdle}}
}
