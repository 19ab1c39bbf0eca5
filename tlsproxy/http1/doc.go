// Package http1 carries HTTP/1.1 requests to an app with one header that the app
// can believe: it is set in every request, and whatever a client sends by that
// name, in any spelling that an app may take for it, is removed.
//
// That holds only as long as the app and this package agree on where a request
// begins. So a request that could be read in two ways is refused (RFC 9112, 11.2),
// not mended: net/http's server, which is kind to such requests, is no help here,
// and a proxy made of it would write every request anew. What passes is the
// client's own bytes, header by header, in order; answers are not looked at, but
// for the one to a request for a WebSocket, after which nothing is HTTP any more.
//
// A Reader is one connection's requests, for one goroutine; Upgrade is the answers'
// part of it, for another. Memory is one buffer of MaxHead at most.
package http1
