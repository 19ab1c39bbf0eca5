package attach

import (
	"net"
	"net/netip"
)

// MadeUpMAC is for runtimes that insist on one (podman): a TUN has none. It is
// the one silk gives the container of that address.
func MadeUpMAC(a netip.Addr) string {
	return net.HardwareAddr(append([]byte{0xee, 0xee}, a.AsSlice()...)).String()
}
