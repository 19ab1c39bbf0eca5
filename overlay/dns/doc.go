// Package dns answers the names that containers ask at 169.254.0.2.
//
// Internal names ([Names], kept by the daemon) are answered here and now, without
// a time to live: A, AAAA and SRV for a name, "<index>.<name>" for one instance,
// PTR for the overlay's addresses; live instances only, in random order. They
// never leave the host. Where no policy lets the asker reach any of them, the
// answer says so, with the command that would (RFC 8914, "Prohibited").
//
// Everything else goes to the host's own resolvers, in their order, and the first
// answer goes back and is kept for as long as it says. An answer that leads to an
// address of the overlay is not passed on.
//
// Submit is called by the data path's readers, on a packet's way, with a query
// that becomes the resolver's own. It never blocks: what is known is answered
// before it returns; a query for the outside that finds the queue full, or too
// many of the same container before it, is dropped and counted, and the container
// asks again as it would after any lost datagram. A fixed number of workers does
// the waiting. Replies are called at most once for a query, never after Close has
// returned. ServeConn is for queries over TCP.
//
// Towards a resolver every query has a socket, so a source port, of its own and a
// random id; what does not repeat both id and question is ignored (RFC 5452, 9). A
// truncated answer is asked again over TCP and cut to what the container said it
// takes (RFC 6891, 6.2.3).
package dns
