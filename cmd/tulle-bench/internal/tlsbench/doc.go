// Package tlsbench measures the termination of TLS: the proxy's own program
// beside haproxy, with the same certificate, cipher and backend, each in a process
// of its own, over the loopback; and the memory of the proxy of a whole cell, with
// real containers' sockets.
package tlsbench

import "tulle/cmd/tulle-bench/internal/bench"

// Scenarios are those of this package.
func Scenarios() []bench.Scenario { return []bench.Scenario{scenario()} }

// Roles are what its scenario needs in other processes.
func Roles() []bench.Role {
	return []bench.Role{{Name: backendRole, Run: runBackend}, {Name: clientRole, Run: runClient}}
}
