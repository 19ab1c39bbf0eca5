//go:build !race

package tun_test

const poolsForget = false
