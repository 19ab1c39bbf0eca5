package fib

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

// TwinPrefix is the IPv6 prefix of an IPv4 network or lease.
func TwinPrefix(p netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(Twin(p.Addr()), 96+p.Bits())
}

// Name is the IPv4 address that an overlay address of either family stands for; the
// zero Addr for an IPv6 address that is nobody's twin.
func Name(a netip.Addr) netip.Addr {
	if a.Is4() {
		return a
	}
	b := a.As16()
	if [12]byte(b[:12]) != [12]byte(network6[:12]) || a.Zone() != "" {
		return netip.Addr{}
	}
	return netip.AddrFrom4([4]byte(b[12:]))
}
