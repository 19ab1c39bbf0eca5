// Package netstack is the daemon's end of what one container says to the world
// outside the overlay: a TCP/IP stack (gVisor's) that has every address at once.
//
// The data path gives a [Stack] the packets that the container sends
// ([Stack.Inject]), as they were read, super-packets whole; what the stack sends it
// writes to the container's device itself, with TCP's segmentation left to the
// container's kernel. So neither way is anything cut to an MTU.
//
//   - TCP ends here: a SYN becomes a [Request], which its handler accepts as a
//     [Conn], a net.Conn, or refuses. [Stack.Dial] opens a connection to the
//     container from any address.
//   - Datagrams and ICMP echo requests are handed over one by one, put together
//     where they came in fragments; what goes back is any address's.
//
// The package knows nothing of what may be reached: it asks nobody and denies
// nothing. A Stack belongs to one container and ends with it.
package netstack
