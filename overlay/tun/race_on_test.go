//go:build race

package tun_test

// poolsForget: the race detector makes sync.Pool drop what it is given, at random,
// so that allocations cannot be counted.
const poolsForget = true
