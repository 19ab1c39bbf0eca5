// Package server is the control plane as a process: the external API (users,
// CLI), the internal API (cells, mutual TLS), the admin socket, the metrics, and
// the life of all four around one store.
//
// It answers requests and decides nothing: what is allowed is package auth's
// word, what is stored is package store's, and what a request looks like is
// package api's. Handlers run on the HTTP server's goroutines, keep no state
// between requests and read the store, so that replicas are alike. An error
// becomes a status and a body in one place of each API: writeError for users,
// Internal.refuse for cells.
//
// Files named internal_* are the internal API: the watch hub, leases, endpoints
// and acknowledgements.
package server
