// Package controlplane measures the policy server: the program itself in a
// process of its own, on a database on this machine's disk, with clients that
// reach it over TLS and cells that hold their watches open from a process of
// theirs.
package controlplane

import "tulle/cmd/tulle-bench/internal/bench"

// Scenarios are those of this package.
func Scenarios() []bench.Scenario {
	return []bench.Scenario{policyAPI(), propagation(), watchScale(), replicas()}
}

// Roles are what its scenarios need in other processes.
func Roles() []bench.Role { return []bench.Role{{Name: cellsRole, Run: runCells}} }
