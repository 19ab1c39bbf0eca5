// Package foundation is a cell's side of a Cloud Foundry foundation that runs
// the original policy server and silk-controller. It answers the cell daemon the
// same question as package client (what does the control plane want me to know,
// and how do I tell it what is mine?) with the same methods, so that a cell of a
// live foundation can become a Tulle cell before anything else does.
//
// It does what silk-daemon and vxlan-policy-agent do, on the same requests: it
// acquires, renews and, asked to, releases the lease of the cell's underlay address,
// lists the other leases, asks when policies were last updated, and fetches those of
// the apps that the cell hosts when that has changed. Out of the two lists it makes
// the snapshots that a Tulle policy server would send: every lease is a peer of kind
// silk, whose containers nobody publishes.
//
// What is known stays known: a request that fails, or whose answer makes no sense,
// changes nothing, and is made again. A policy, a lease or a tag that cannot be is
// left out, and the others stand. Nothing is known before both servers have
// answered once.
//
// There is nobody to acknowledge to. So the floor is always the newest revision, and
// revisions are counted here, for as long as the Client lives.
//
// The daemon calls Lease and SetEndpoints from any goroutine and runs Watch on
// one. The package keeps no file.
package foundation
