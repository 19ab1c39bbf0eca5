//go:build race

package e2e

// Under the race detector the binaries are watched too.
var raceFlags = []string{"-race"}
