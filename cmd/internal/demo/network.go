package demo

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"

	"tulle/overlay/dns"
	"tulle/overlay/netcfg"
)

// FreeNetwork is the first of some private networks that holds nothing this
// host is or reaches: a daemon refuses to start in one that does. The first
// is the product's default.
func FreeNetwork() (netip.Prefix, error) {
	things, err := netcfg.HostNetworks()
	if err != nil {
		return netip.Prefix{}, err
	}
	resolvers, err := dns.ReadResolvConf(dns.DefaultResolvConf)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return netip.Prefix{}, err
	}
	for _, r := range resolvers {
		things = append(things, netcfg.Address("a resolver", r.Addr()))
	}
	return firstFree(things)
}

func firstFree(things []netcfg.Named) (netip.Prefix, error) {
	var last error
	for second := 255; second >= 128; second-- {
		network := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(second)}), 16)
		if last = netcfg.Clashes(network, things...); last == nil {
			return network, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("no free network for containers: %w", last)
}
