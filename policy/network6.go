package policy

import "net/netip"

// Network6 is the IPv6 network of every overlay: each overlay address has a twin in
// it, whose last four bytes are the IPv4 address. So a lease of an IPv4 subnet is one
// of an IPv6 prefix, 96 bits longer, an endpoint has an address of each family, and
// both are one name: nothing that is said about the one has to be said about the
// other. It is a unique local network (RFC 4193); it never leaves an overlay, so every
// overlay may have the same.
var Network6 = netip.MustParsePrefix("fd74:756c:6c65::/96")

var network6 = Network6.Addr().As16()

// Twin is the IPv6 address of an IPv4 overlay address.
func Twin(a netip.Addr) netip.Addr {
	b, a4 := network6, a.As4()
	copy(b[12:], a4[:])
	return netip.AddrFrom16(b)
}
