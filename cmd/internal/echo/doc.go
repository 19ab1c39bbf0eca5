// Package echo is the app that runs in the demo's containers, and the hand that
// works inside them.
//
// As an app it serves HTTP and echoes UDP: what a newcomer can try with curl
// and what the tests measure with. As a hand it reads requests as JSON lines on
// standard input (dial this, download that, hold a connection) and writes what
// came of them, with times, on standard output; what its own server sees end is
// told there too, unasked. Client is the other end of these two pipes, for the
// process that started the container.
//
// Both ends of a connection stand on one host in the demo, so instants in
// events are comparable between containers.
package echo
