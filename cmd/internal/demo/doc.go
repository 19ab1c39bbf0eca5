// Package demo runs the whole of Tulle on one host, for real, and shows it.
//
// World starts the binaries themselves: a policy server on SQLite, cell daemons
// on loopback addresses, apps in containers made by `tulle run`. It takes free
// ports and one temporary directory, so that any number of worlds live side by
// side, waits for events and never for time to pass, and takes everything away
// on Close, looking afterwards whether that is so. End-to-end tests are written
// on it.
//
// Command is `tulle demo`: the steps of a newcomer's first minute on a World, each
// with what was asked, what came back, and how long it took.
//
// As root the server and the daemons run as an ordinary user without any
// capability; `tulle run` starts the containers as whoever runs the world.
package demo
