// Package route is the original's way in to internal names, and its way out: it
// hears over NATS what route emitters register, and answers the lookup API of the
// service-discovery-controller (reference: service-discovery, 2 and 3).
//
// A [Table] decides, with no socket and no clock of its own, what a message or the
// passing of time changes. A [Listener] is its NATS connection: it puts the changes
// into the store, from which every server and every cell has them. The refreshes
// that emitters send each minute change nothing and are kept in memory; each server
// hears them all, so that any of them may find an entry stale. [Lookup] is the HTTP
// API, which answers apps' routes as well as registered addresses.
package route
