package fib

import (
	"net/netip"

	"tulle/policy"
)

// Network6 is policy's: the IPv6 network of every overlay.
var Network6 = policy.Network6

var network6 = Network6.Addr().As16()

// Twin is the IPv6 address of an IPv4 overlay address.
func Twin(a netip.Addr) netip.Addr { return policy.Twin(a) }

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
