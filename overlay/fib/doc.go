// Package fib answers, per packet, who is where: which container an overlay
// address is, on this cell or on another, and which cell's lease holds it.
//
// Everything that must agree for one verdict lies in one [Snapshot], immutable,
// behind one atomic pointer. The data path loads it once a packet and reads it
// from any goroutine without a lock. [Table.Update] builds the next one: it
// copies the pages (of 256 addresses) that the change touches and shares all
// others, so that an update costs what changes and not what there is.
//
// It is pure: no sockets, no clock, no logger.
package fib
