package netcfg

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Device is how a container's end of the overlay is set up.
type Device struct {
	Name    string
	Address netip.Prefix // the endpoint's, a /32
	// Address6 is its IPv6 address, a /128; if it is not valid, IPv6 is off.
	Address6 netip.Prefix
	MTU      int
}

// maxSegments is how many segments of this MTU the container's stack may put into one
// super-packet: what the daemon takes of one read (packet.MaxFrames), and what it can
// send with one call (udp.MaxSend). A connection with a small MSS would make more, and
// hang; a usual one would make two or three more than go at once, which cost the way
// to a peer nearly as much as the rest.
func maxSegments(mtu int) int {
	const (
		frames   = 64
		bytes    = 65000
		overhead = 82 // of the longest mode, inside the outer UDP: VXLAN in WireGuard
	)
	return max(1, min(frames, bytes/(mtu+overhead)))
}

// addrGenModeNone is IN6_ADDR_GEN_MODE_NONE of <linux/if_link.h>: no link-local
// address, and so no router solicitation and no listener report.
const addrGenModeNone = 1

// Configure gives the device its address and MTU, takes it up, and makes it the
// default route (scope link: behind a TUN there is no neighbour to resolve).
// IPv6 has the one address, if any, and a default route; or it is off. The host's autoconfiguration is off in any case: it would send packets that
// are nobody's. Where IPv6 cannot be had, because this kernel has none or a runtime
// turned it off in this namespace, there is none. Configuring again changes nothing.
func Configure(d Device) error {
	link, err := netlink.LinkByName(d.Name)
	if err != nil {
		return fmt.Errorf("find device %s: %w", d.Name, err)
	}
	if err := setIPv6(link, d.Address6.IsValid()); err != nil {
		return err
	}
	if err := netlink.LinkSetMTU(link, d.MTU); err != nil {
		return fmt.Errorf("set MTU %d of %s: %w", d.MTU, d.Name, err)
	}
	if err := netlink.LinkSetGSOMaxSegs(link, maxSegments(d.MTU)); err != nil {
		return fmt.Errorf("set segments per super-packet of %s: %w", d.Name, err)
	}
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: ipNet(d.Address)}); err != nil {
		return fmt.Errorf("give %s to %s: %w", d.Address, d.Name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("take %s up: %w", d.Name, err)
	}
	route := &netlink.Route{
		LinkIndex: link.Attrs().Index,
		Dst:       &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
		Src:       d.Address.Addr().AsSlice(),
		Scope:     netlink.SCOPE_LINK,
	}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("default route through %s: %w", d.Name, err)
	}
	if d.Address6.IsValid() {
		return configure6(link, d)
	}
	return nil
}

// networkBits6 is the length of the overlay's IPv6 network; see fib.Network6.
const networkBits6 = 96

// resolver6 is where containers ask for names over IPv6; see dns.Address6.
var resolver6 = netip.MustParsePrefix("fd00:169:254::2/128")

// configure6 gives the device its IPv6 address, without the search for another that
// has it: nobody else can. The default route beside the two to the overlay and the
// resolver may go where an operator wants no IPv6 to the outside. Callers that sort
// by RFC 6724 take IPv4 first all the same: the address is a unique local one.
func configure6(link netlink.Link, d Device) error {
	err := netlink.AddrReplace(link, &netlink.Addr{IPNet: ipNet(d.Address6), Flags: unix.IFA_F_NODAD})
	if none6(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("give %s to %s: %w", d.Address6, d.Name, err)
	}
	network := netip.PrefixFrom(d.Address6.Addr(), networkBits6).Masked()
	for _, to := range []netip.Prefix{network, resolver6, netip.PrefixFrom(netip.IPv6Unspecified(), 0)} {
		if err := netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(to)}); err != nil {
			return fmt.Errorf("route to %s through %s: %w", to, d.Name, err)
		}
	}
	return nil
}

// none6 says whether the error is the kernel's way of saying that it has no IPv6,
// here or at all.
func none6(err error) bool {
	return errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP)
}

// Check says whether the device is there as Configure(d) left it; the error
// names the first difference.
func Check(d Device) error {
	link, err := netlink.LinkByName(d.Name)
	if err != nil {
		return fmt.Errorf("find device %s: %w", d.Name, err)
	}
	if link.Type() != "tuntap" {
		return fmt.Errorf("%s is a %s, not a TUN", d.Name, link.Type())
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		return fmt.Errorf("%s is down", d.Name)
	}
	if d.MTU != 0 && link.Attrs().MTU != d.MTU {
		return fmt.Errorf("%s has MTU %d, not %d", d.Name, link.Attrs().MTU, d.MTU)
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("addresses of %s: %w", d.Name, err)
	}
	var has []netip.Prefix
	for _, a := range addrs {
		has = append(has, prefix(a.IPNet))
	}
	if len(has) != 1 || has[0] != d.Address {
		return fmt.Errorf("%s has %v, not %v", d.Name, has, d.Address)
	}
	routes, err := netlink.RouteList(link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("routes of %s: %w", d.Name, err)
	}
	for _, r := range routes {
		if r.Dst == nil || prefix(r.Dst).Bits() == 0 {
			return nil
		}
	}
	return fmt.Errorf("%s is not the default route", d.Name)
}

// LoopbackUp takes lo up in a fresh namespace.
func LoopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("take lo up: %w", err)
	}
	return nil
}

// setIPv6 turns IPv6 on or off on the device, and its autoconfiguration off: the
// generation mode through netlink, which works where /proc/sys is read-only, and the
// sysctl, which also refuses addresses that someone adds later. Without IPv6 in the
// kernel there is neither.
func setIPv6(link netlink.Link, on bool) error {
	name := link.Attrs().Name
	value, word := []byte("1"), "off"
	if on {
		value, word = []byte("0"), "on"
	}
	if err := netlink.LinkSetIP6AddrGenMode(link, addrGenModeNone); err != nil &&
		!errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("IPv6 autoconfiguration of %s off: %w", name, err)
	}
	err := os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", name, "disable_ipv6"), value, 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("IPv6 of %s %s: %w", name, word, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefix(n *net.IPNet) netip.Prefix {
	addr, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	if addr.Is4In6() {
		addr = addr.Unmap()
	}
	return netip.PrefixFrom(addr, bits)
}
