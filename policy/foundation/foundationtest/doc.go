// Package foundationtest is a Cloud Foundry foundation for tests: a policy server's
// internal API and a silk-controller, over mutual TLS, that answer as the originals
// do and can be made to fail as they do. What they answer was taken from what the
// originals were seen to say, statuses and texts included, and is checked nowhere
// here beyond that: a policy list may be set that no policy server should give.
package foundationtest
