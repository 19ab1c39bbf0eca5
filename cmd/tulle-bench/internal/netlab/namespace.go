package netlab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tulle/overlay/netcfg"
)

// Namespace is a network namespace with lo up.
type Namespace struct{ file *os.File }

// New makes one. The caller closes it.
func New() (*Namespace, error) {
	n := &Namespace{}
	err := netcfg.OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := netcfg.LoopbackUp(); err != nil {
			return err
		}
		var err error
		n.file, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("new network namespace (this needs root): %w", err)
	}
	return n, nil
}

// Close gives the namespace up; it ends with whoever is left in it.
func (n *Namespace) Close() error { return n.file.Close() }

// File is the namespace's descriptor; it stays the Namespace's.
func (n *Namespace) File() *os.File { return n.file }

// Path names the namespace for other processes of the same user.
func (n *Namespace) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd()) }

// Do runs f on a thread inside the namespace. Sockets that f opens stay there.
func (n *Namespace) Do(f func() error) error { return netcfg.Do(n.file, f) }

// Run runs a program inside to its end.
func (n *Namespace) Run(cmd *exec.Cmd) error {
	var out []byte
	err := n.Do(func() (err error) {
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	return nil
}

// Underlay is two hosts on one link.
type Underlay struct {
	Hosts [2]*Namespace
	Addrs [2]netip.Addr
}

// Device is the name of the underlay's device on both hosts.
const Device = "under0"

// MTU is the underlay's.
const MTU = 1500

// NewUnderlay makes one. The caller closes it.
func NewUnderlay() (u *Underlay, err error) {
	u = &Underlay{Addrs: [2]netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}}
	defer func() {
		if err != nil {
			err = errors.Join(err, u.Close())
		}
	}()
	for i := range u.Hosts {
		if u.Hosts[i], err = New(); err != nil {
			return u, err
		}
	}
	if err = veth(u.Hosts[0], u.Hosts[1], Device, Device); err != nil {
		return u, err
	}
	for i, h := range u.Hosts {
		if err = h.Do(func() error { return up(Device, netip.PrefixFrom(u.Addrs[i], 24)) }); err != nil {
			return u, fmt.Errorf("underlay: %w", err)
		}
	}
	return u, nil
}

// Close ends both hosts.
func (u *Underlay) Close() error {
	var errs []error
	for _, h := range u.Hosts {
		if h != nil {
			errs = append(errs, h.Close())
		}
	}
	return errors.Join(errs...)
}

// PlainNIC turns off, on both hosts, what a network card without any offload
// lacks.
func (u *Underlay) PlainNIC() error {
	for _, h := range u.Hosts {
		if err := h.Do(func() error { return offloadsOff(Device) }); err != nil {
			return err
		}
	}
	return nil
}

// DefaultRoute gives the first host a way out, through the second.
func (u *Underlay) DefaultRoute() error {
	return u.Hosts[0].Do(func() error {
		link, err := netlink.LinkByName(Device)
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: u.Addrs[1].AsSlice()})
	})
}

// NoTimeWait lets the first host forget connections at once. Tens of thousands of them
// go to one address and port, more than there are source ports: those of one candidate
// in TIME-WAIT would hold up the other, and what is measured would be the kernel's
// search for a port.
func (u *Underlay) NoTimeWait() error {
	return u.Hosts[0].Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv4/tcp_max_tw_buckets", []byte("0"), 0)
	})
}

// veth joins two namespaces.
func veth(a, b *Namespace, nameA, nameB string) error {
	err := a.Do(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: nameA, MTU: MTU}, PeerName: nameB,
			PeerNamespace: netlink.NsFd(int(b.file.Fd()))})
	})
	if err != nil {
		return fmt.Errorf("veth pair: %w", err)
	}
	return nil
}

// up takes a device of the calling thread's namespace up, with an address if
// there is one.
func up(name string, ip netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if ip.IsValid() {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: ip.Addr().AsSlice(), Mask: net.CIDRMask(ip.Bits(), 32)}}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}
