// Package uaa answers who a bearer token is where a Cloud Foundry UAA gives them
// out.
//
// There are two Authenticators. A Client asks the UAA about every token (POST
// /check_token), as the original policy server does, so that a token taken back
// counts at once. A Verifier checks the token's signature by the keys that the
// UAA publishes and asks nobody but for new keys; it outlives an outage of the
// UAA, and learns of a token taken back only by its expiry. A Client also gives
// the server's own token, with which it asks the Cloud Controller.
//
// The policy server calls both from its handlers' goroutines. Nothing here
// starts a goroutine; every request to the UAA has a time limit and follows no
// redirect, and no error holds a token or a secret.
package uaa
