// Package client is a cell's side of the policy server's internal API. It
// answers one question for the cell daemon: what does the control plane want me
// to know, and how do I tell it what is mine?
//
// The daemon calls Lease and SetEndpoints from any goroutine and runs Watch on
// one. Watch hands every event to the daemon's Handler, in order, one at a time,
// on that goroutine; when the handler returns, the event is acknowledged, so it
// returns when the table is published and the flows that the event forbids are
// cut. Watch reconnects by itself, with jitter, for as long as its context
// lives, and goes on from the revision that was handled last.
//
// All requests share one HTTP/2 connection, so that acknowledgements reach the
// replica that the watch is open on. The package keeps no file and owns no state
// beside that connection.
package client
