// Package auth answers who a bearer token is and what it may do.
//
// The policy server's external API asks it once a request, from any goroutine.
// A standalone server keeps its tokens in a file, as SHA-256 sums: whoever reads
// the file learns no token. Another source of identities (UAA) is another
// Authenticator.
package auth
