// Package wireguard carries frames between this cell and its peers inside
// standard WireGuard tunnels.
//
// The protocol is golang.zx2c4.com/wireguard's. This package stands on both its
// sides: it is the bind that moves the tunnel's datagrams over a [udp.Conn], and
// it is the network device that the tunnel thinks it serves. That device is a
// piece of memory: a frame given to [Tunnel.Send] comes up in it as an IPv4/UDP
// packet from this cell's tunnel address to the peer's, port 4789 at both ends,
// and what comes down from it is unwrapped again and handed to the receiver. A
// kernel that runs VXLAN over its WireGuard interface sends and takes the same.
//
//	container's goroutine             library                         library
//	Send ─ headers, copy ─► device ─► seal, in parallel ─► bind.Send ─► udp.Conn
//	receiver ◄─ headers checked ◄─ device ◄─ open, in parallel ◄─ bind ◄─ udp.Conn
//
// Each peer has a public key, an address inside the tunnel, which is the only one
// it may send from or be sent at, and an address on the underlay, which follows
// the peer where it goes. The three are set together ([Tunnel.Set]) and gone
// together ([Tunnel.Remove]): with the key goes the session, at once.
//
// All methods may be called from any goroutine. The receiver runs in the
// library's goroutine of the sending peer; calls do not overlap.
package wireguard
