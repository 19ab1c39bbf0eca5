//go:build race

package datapath

// raced: the race detector makes the cell several times slower and what runs beside
// it not, so shares of the processor say nothing.
const raced = true
