package main

import (
	"slices"

	"tulle/cmd/tulle-bench/internal/attach"
	"tulle/cmd/tulle-bench/internal/bench"
	"tulle/cmd/tulle-bench/internal/controlplane"
	"tulle/cmd/tulle-bench/internal/dataplane"
	"tulle/cmd/tulle-bench/internal/tlsbench"
)

// scenarios are all there are, each from its own package under internal.
func scenarios() []bench.Scenario {
	return slices.Concat(
		controlplane.Scenarios(),
		dataplane.Scenarios(),
		attach.Scenarios(),
		tlsbench.Scenarios(),
	)
}

// roles are what this program plays in other processes for them.
func roles() []bench.Role {
	return slices.Concat(
		controlplane.Roles(),
		dataplane.Roles(),
		tlsbench.Roles(),
	)
}
