package netcfg

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrClash marks every clash found by Clashes.
var ErrClash = errors.New("overlay network clashes")

// Named is an address or network that the overlay network must not hold, and
// what it is, as an operator would say it: "the underlay address", "peer cell-b".
type Named struct {
	What   string
	Prefix netip.Prefix
}

// Address names a single address.
func Address(what string, a netip.Addr) Named {
	a = a.Unmap()
	return Named{What: what, Prefix: netip.PrefixFrom(a, a.BitLen())}
}

// Clashes returns an error that names every one of things that lies inside
// overlay, or nil. Containers reach nothing inside the overlay network but each
// other, and a host address in there would be unreachable or, worse, taken for
// a container. A thing that is *wider* than the overlay is no clash: an overlay
// may be cut out of 10.0.0.0/8, and every host has a default route.
func Clashes(overlay netip.Prefix, things ...Named) error {
	overlay = overlay.Masked()
	var all []error
	seen := map[Named]bool{}
	for _, t := range things {
		inside := t.Prefix.IsValid() && t.Prefix.Bits() >= overlay.Bits() && overlay.Contains(t.Prefix.Addr())
		if inside && !seen[t] {
			seen[t] = true
			all = append(all, fmt.Errorf("%w: %s holds %s, %s; choose another overlay network (network in the policy server's configuration, --network of tulle dev)", ErrClash, overlay, t.What, text(t.Prefix)))
		}
	}
	return errors.Join(all...)
}

// HostNetworks lists the addresses and routes of the calling thread's namespace,
// named, for Clashes: what this host itself is and reaches.
func HostNetworks() ([]Named, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	var all []Named
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		all = append(all, Address("this host's address on "+names[a.LinkIndex], prefix(a.IPNet).Addr()))
	}
	// Every table: silk and other overlays keep routes in ones of their own.
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL,
		&netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil || r.Type == unix.RTN_LOCAL || r.Type == unix.RTN_BROADCAST || r.Type == unix.RTN_ANYCAST || r.Type == unix.RTN_MULTICAST {
			continue // the default route, and the kernel's own rows for the addresses above
		}
		all = append(all, Named{What: "this host's route on " + names[r.LinkIndex], Prefix: prefix(r.Dst)})
	}
	return all, nil
}

func text(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}
