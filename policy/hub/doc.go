// Package hub answers, for every cell that watches: what concerns this cell
// now, what changed since what it has, and how far have the others come?
//
// Three layers, from pure to busy. An Index holds the whole state, fed by the
// store's changes in revision order, and computes a cell's Snapshot or the Delta
// of a run of changes; it knows no clock, no lock and no goroutine. A Hub keeps
// one Index in step with the store and wakes the watchers that a change
// concerns. A Watcher is one open stream; its goroutine asks Next for events.
//
// What concerns a cell: the policies whose source or destination app it hosts;
// the tags of the apps it hosts and of their partners; the endpoints, on other
// cells, of the partners; every other peer; the secrets of its own pairs; all names and the instances they
// stand for. A *partner* of an app is an app that
// it has a policy with, in either direction. Instances of the same app are
// partners only under a policy of the app with itself.
//
// Changes are not queued as messages. A watcher keeps pointers to the changes
// that concern it, and when its stream can take more, one Delta is computed
// from all of them against the present state. So a slow watcher gets fewer and
// larger deltas, costs the others nothing, and gets a Snapshot when the changes
// it missed are too many to keep. Applying a Delta is idempotent: it may set
// what the cell has, and remove what it has not.
//
// A change's cost follows the cells it concerns. The others learn its revision
// with their next heartbeat.
//
// Acknowledgements and liveness are soft state: they are gone with the process
// and come back with the cells' next sign of life. Where several servers share
// the store, their hubs tell each other of them (Exchange), so that each knows
// how far the cells of all are. Which changes concern a cell of another server
// each hub finds out by itself: it applies them all.
package hub
