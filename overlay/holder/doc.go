// Package holder keeps descriptors alive beside the daemon. A TUN device dies
// with its last descriptor and nobody without privilege can make it again, so
// when the daemon is killed something else must still have a duplicate.
//
// A Keeper is what the daemon sees, and the one place through which it gets its
// descriptors back. There are two. Process is a small process of its own, the
// same binary in its own session, asked over a unix socket (0600) in the state
// directory; the daemon starts it if none answers, and again if it dies.
// Systemd is the service manager's descriptor store, sd_notify(3).
//
// Keepers are called by the daemon from any goroutine, a few times in an
// endpoint's life. When Put returns, the descriptor is kept. Everything passed
// in stays the caller's, everything returned is the caller's.
package holder
