//go:build !race

package datapath

const raced = false
