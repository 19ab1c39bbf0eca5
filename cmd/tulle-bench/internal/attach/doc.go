// Package attach measures how long a container waits for its network: the daemon's
// part alone, and the whole of it as a runtime sees it, with the policy server on
// the same machine and a second cell whose acknowledgement each attach waits for.
package attach

import "tulle/cmd/tulle-bench/internal/bench"

// Scenarios are those of this package.
func Scenarios() []bench.Scenario { return []bench.Scenario{attaches()} }
