//go:build !race

package udp_test

const poolsForget = false
