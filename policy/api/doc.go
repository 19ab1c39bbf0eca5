// Package api holds the REST types and paths of the policy server, external and
// internal, as they are on the wire. It knows no server and no client; both
// import it. Shapes and texts of the networking API are those of the Cloud
// Foundry policy server (docs/compatibility.md).
package api
