// Package endpoint knows what this cell gave out: its lease, the containers
// attached with their addresses and incarnations, and what must never be used
// twice. An attach or detach that was answered is in here after kill -9 and
// after a power cut.
//
// A Ledger is the whole of it: it decides in memory, writes a record to the
// journal file, and returns when the record is on the disk. The Pool decides
// addresses and the codec reads and writes records; both are plain values
// without clock or file. The daemon calls the Ledger from any goroutine; writes
// that wait for the disk at the same time share one fsync.
//
// The journal is append-only, one record a line, each with its checksum, begun
// anew by rename when it has grown. A line that a crash tore off at the end was
// never answered and is dropped, and the counters leave a gap for it. Anything
// else that does not read is an error: to go on without it would be to use an
// incarnation twice.
package endpoint
