// Package wireguard carries frames between this cell and its peers inside
// standard WireGuard tunnels.
//
// Whoever has a frame seals it, and whoever receives a datagram opens it: no packet
// changes goroutines, and none is copied. [Tunnel.SendTrain] is given frames with
// room around them; it writes an IPv4 and a UDP header before each, as if it came from
// this cell's tunnel address to the peer's, port 4789 at both ends, seals all in
// place, and sends them with one call. A socket's goroutine opens what comes in the
// buffer that it came in, and hands the frames on from there. A kernel that runs
// VXLAN over its WireGuard interface sends and takes the same.
//
//	container's goroutine   SendTrain ─ headers, numbers, seal ─► udp.Conn
//	socket's goroutine      udp.Conn ─► open ─ window ─ headers checked ─► receiver
//	                            └─ handshakes ─► a goroutine of their own
//
// The handshake is Noise's IKpsk2, from github.com/flynn/noise; mac1, mac2 and
// cookies, the replay window and the limit of handshakes a source are
// golang.zx2c4.com/wireguard's, as are all times and numbers. What is here is what lies
// between: the messages, the sessions, and when a new one is made. On the way of a
// packet there is no allocation, no clock and no lock but a session's own, around its
// replay window and once a run of datagrams; timers look at marks that it leaves.
//
// Each peer has a public key or, while it changes it, two; an address inside the
// tunnel, which is the only one it may send from or be sent at; and an address on the
// underlay, which follows the peer where it goes. They are set together
// ([Tunnel.Set]) and gone together ([Tunnel.Remove]): with a key goes each session
// that it made, at once. The cell's own keys may be several too ([Tunnel.SetKeys]).
//
// To a peer that is a Tunnel too frames go from several ports, each flow from one
// ([Peer.Spread]), so that the ways between tell flows apart.
//
// All methods may be called from any goroutine but the receiver's, which may only
// send. The receiver runs in the goroutine of the socket.
package wireguard
