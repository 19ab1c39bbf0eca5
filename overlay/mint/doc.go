// Package mint makes free TCP sockets of a network namespace from outside it,
// as often as needed, with no right over it.
//
// Whoever is inside once (the CNI plugin, the init of `tulle run`) makes three
// sockets with Create and hands their descriptors out: the public port of both
// families, bound but not listening yet; a listener on the namespace's own 127.0.0.1; and a
// spare socket. Outside, the spare connects to the private listener, and accept
// gives its twin. connect(2) with AF_UNSPEC turns either end back into a socket
// without a connection: the twin is a new socket of the namespace, the spare is
// as before. SO_REUSEPORT has no part in it.
//
// Anything inside the namespace may connect to the private listener as well; a
// twin counts only if its peer is the spare. The worst that a container can do is
// to keep its own sockets from being made.
//
// A Mint may be used from any goroutine. It is the one user of its descriptors'
// sockets: two processes at once would take each other's twins.
package mint
