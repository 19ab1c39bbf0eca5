// Package traffic makes and measures the traffic of the data path's scenarios,
// the same for Tulle and for what it is held against. A [Generator] is a process
// in a container: it serves one port of TCP and one of UDP, and, when asked,
// sends to another's.
//
// Where a wake-up counts as much as the work (one byte to and fro, streams), it
// blocks in the kernel instead of going through Go's network poller.
package traffic
