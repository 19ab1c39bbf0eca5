package netlab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Kernel is two cells of what Linux has, set up as silk does: a vxlan device with
// gbp, static routes and neighbours, a veth into each container, and rules that
// mark a container's packets with its app's tag and let in what a tag allows.
//
//	container 10.255.X.2 ── veth ── host 10.255.X.0 (silk-vtep) ── underlay
type Kernel struct {
	*Underlay
	Containers [2]*Namespace // of the client and the server, on one cell each
	Addrs      [2]netip.Addr // theirs
	Filter     string        // whose packet filter it is
}

const (
	vtep          = "silk-vtep"
	gateway       = "169.254.0.1"
	containersMTU = 1450
)

// NewKernel makes two cells with a container each on the underlay, whose it stays.
func NewKernel(u *Underlay) (k *Kernel, err error) {
	k = &Kernel{Underlay: u}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("kernel cell: %w", err), k.Close())
		}
	}()
	for i := range k.Containers {
		k.Addrs[i] = address(i, 2)
		if err = k.addCell(i); err != nil {
			return k, err
		}
		if k.Containers[i], err = k.addContainer(i, "c0", k.Addrs[i]); err != nil {
			return k, err
		}
	}
	return k, nil
}

// NewKernelPair makes one cell with both containers on it.
func NewKernelPair(u *Underlay) (k *Kernel, err error) {
	k = &Kernel{Underlay: u}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("kernel cell: %w", err), k.Close())
		}
	}()
	if err = k.addCell(0); err != nil {
		return k, err
	}
	for i := range k.Containers {
		k.Addrs[i] = address(0, byte(2+i))
		if k.Containers[i], err = k.addContainer(0, fmt.Sprintf("c%d", i), k.Addrs[i]); err != nil {
			return k, err
		}
	}
	return k, nil
}

// Close ends the containers.
func (k *Kernel) Close() error {
	var errs []error
	for _, c := range k.Containers {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}

func lease(cell int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 255, byte(77 + cell), 0}), 24)
}

func address(cell int, last byte) netip.Addr {
	a := lease(cell).Addr().As4()
	a[3] = last
	return netip.AddrFrom4(a)
}

// hardwareAddr is ee:ee and the four bytes of a lease's base address.
func hardwareAddr(lease netip.Prefix) net.HardwareAddr {
	return append(net.HardwareAddr{0xee, 0xee}, lease.Addr().AsSlice()...)
}

func (k *Kernel) addCell(i int) error {
	return k.Hosts[i].Do(func() error {
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
			return err
		}
		under, err := netlink.LinkByName(Device)
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr = vtep, hardwareAddr(lease(i))
		link := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: 1, Port: 4789, GBP: true,
			SrcAddr: k.Underlay.Addrs[i].AsSlice(), VtepDevIndex: under.Attrs().Index}
		if err := netlink.LinkAdd(link); err != nil {
			return fmt.Errorf("vxlan device: %w", err)
		}
		own := &netlink.Addr{IPNet: &net.IPNet{IP: lease(i).Addr().AsSlice(), Mask: net.CIDRMask(16, 32)}, Scope: unix.RT_SCOPE_LINK}
		if err := netlink.AddrAdd(link, own); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
		return k.converge(link.Attrs().Index, i, 1-i)
	})
}

// converge adds what silk-daemon adds for each foreign lease.
func (k *Kernel) converge(index, own, peer int) error {
	base := net.IP(lease(peer).Addr().AsSlice())
	route := &netlink.Route{LinkIndex: index, Dst: &net.IPNet{IP: base, Mask: net.CIDRMask(24, 32)}, Gw: base,
		Src: lease(own).Addr().AsSlice()}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("route: %w", err)
	}
	neighbour := &netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, Type: unix.RTN_UNICAST,
		IP: base, HardwareAddr: hardwareAddr(lease(peer))}
	if err := netlink.NeighSet(neighbour); err != nil {
		return fmt.Errorf("neighbour: %w", err)
	}
	forward := &netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF,
		IP: k.Underlay.Addrs[peer].AsSlice(), HardwareAddr: hardwareAddr(lease(peer))}
	if err := netlink.NeighSet(forward); err != nil {
		return fmt.Errorf("forwarding entry: %w", err)
	}
	return nil
}

func (k *Kernel) addContainer(cell int, hostEnd string, ip netip.Addr) (*Namespace, error) {
	c, err := New()
	if err != nil {
		return nil, err
	}
	const eth0 = "eth0"
	via := netip.MustParseAddr(gateway)
	err = errors.Join(
		veth(k.Hosts[cell], c, hostEnd, eth0),
		k.Hosts[cell].Do(func() error { return pointToPoint(hostEnd, via, ip) }),
		c.Do(func() error {
			if err := pointToPoint(eth0, ip, via); err != nil {
				return err
			}
			link, err := netlink.LinkByName(eth0)
			if err != nil {
				return err
			}
			return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: via.AsSlice()})
		}))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("container: %w", err), c.Close())
	}
	return c, nil
}

func pointToPoint(name string, own, peer netip.Addr) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetMTU(link, containersMTU); err != nil {
		return err
	}
	full := net.CIDRMask(32, 32)
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: own.AsSlice(), Mask: full},
		Peer: &net.IPNet{IP: peer.AsSlice(), Mask: full}}); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}
