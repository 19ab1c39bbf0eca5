package main

import "tulle/cmd/tulle-bench/internal/bench"

// scenarios are all there are, each from its own package under internal.
func scenarios() []bench.Scenario {
	return []bench.Scenario{}
}

// roles are what this program plays in other processes for them.
func roles() []bench.Role {
	return []bench.Role{}
}
