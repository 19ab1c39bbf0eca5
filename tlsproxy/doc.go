// Package tlsproxy is the sidecar of one container: it ends TLS on a port that
// other containers reach over the overlay, and carries the bytes to the app's
// plain port beside it.
//
// What it promises of a connection:
//
//   - TLS 1.2 or 1.3 with an AEAD cipher, nothing older. No client certificate, no
//     ALPN: inside it is plain TCP (Cloud Foundry's port 61443).
//   - A client that ended its half with close_notify ends the app's reading half
//     and may go on reading; the app's end reaches the client the same way
//     (RFC 8446, 6.1). What ended otherwise is no end: a cut connection is
//     reset on the other side, so that neither takes a part for the whole.
//   - Where the app asks for it, its caller's identity: once a connection by the
//     PROXY protocol, or in each HTTP/1.1 request (package http1).
//   - An app that is not there is a TLS alert in the handshake, not a
//     connection that says nothing.
//
// What it promises of itself: a bounded number of connections, a bounded time for
// a handshake and for silence, two buffers a connection. A client can neither
// make it grow nor wait.
//
// Serve runs in the caller's goroutine and starts two a connection. Shutdown may
// be called from any.
package tlsproxy
