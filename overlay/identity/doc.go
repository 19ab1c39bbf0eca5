// Package identity keeps the certificates of a cell's containers: a key made here
// for each, a certificate that the policy server signs for it, renewed at half of
// its life, and what containers trust each other by.
//
// When a certificate is due is decided by CLOCK_BOOTTIME, which neither a jump of
// the wall clock nor a suspend leads astray; the wall clock alone says whether one
// has expired as others see it, and then a renewal is tried at once. A pair is
// used until the next one is here, so that a server that is away for an hour, or
// for half a certificate's life, is not noticed. Pairs are files (0600) in the
// daemon's state directory, so that they outlive the daemon too.
//
// Run does the asking, in its caller's goroutine and a few of its own. The other
// methods may be called from any.
package identity
