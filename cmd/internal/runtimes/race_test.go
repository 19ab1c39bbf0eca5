//go:build race

package runtimes

// Under the race detector the binaries are watched too.
var raceFlags = []string{"-race"}
