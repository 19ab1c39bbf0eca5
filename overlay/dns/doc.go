// Package dns answers the names that containers ask at 169.254.0.2.
//
// It is a forwarder: a query goes to the host's own resolvers, in their order,
// and the first answer goes back. Names under the internal domains
// (apps.internal) never leave the host: they are answered SERVFAIL at once, so
// that neither a public server learns them nor a caller waits.
//
// Submit is called by the data path's readers, on a packet's way, with a query
// that becomes the forwarder's own. It never blocks: a query that finds the
// queue full, or too many of the same container before it, is dropped and
// counted, and the container asks again as it would after any lost datagram.
// A fixed number of workers does the waiting. Replies are called from the
// workers, at most once for a query, never after Close has returned.
//
// Towards a container there is UDP only. Towards a resolver every query has a
// socket, so a source port, of its own and a random id; what does not repeat
// both id and question is ignored (RFC 5452, 9). A truncated answer is asked
// again over TCP and cut to what the container said it takes (RFC 6891, 6.2.3).
package dns
