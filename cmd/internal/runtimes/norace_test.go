//go:build !race

package runtimes

var raceFlags []string
