package cni_test

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"tulle/cni/internal/cnitest"
	"tulle/overlay/netcfg"
	"tulle/overlay/netcfg/nstest"
)

// TestHostDeviceOfThatName: whoever has rights over the host's namespace must
// not touch its eth0 when a container's is meant.
func TestHostDeviceOfThatName(t *testing.T) {
	nstest.NeedTUN(t)
	host, peer, inside := nstest.New(t), nstest.New(t), nstest.New(t)
	name, _ := nstest.Veth(t, host, peer, netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("192.0.2.2/24"))
	look := func() (s string) {
		must(t, host.Do(func() error {
			link, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
			s = fmt.Sprint(link.Attrs().MTU, link.Attrs().Flags&net.FlagUp, addrs)
			return err
		}))
		return s
	}
	must(t, host.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetDown(link); err != nil {
			return err
		}
		if err := netlink.LinkSetName(link, "eth0"); err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	}))
	before := look()
	c := cnitest.New(t)
	// The plugin's process is in the "host" namespace.
	must(t, host.Do(func() error {
		out, code := call(env("ADD", "c1", inside.Path(), "eth0"), conf("1.0.0", c.Socket))
		if code != 0 {
			return fmt.Errorf("ADD: %s", out)
		}
		return nil
	}))
	if after := look(); after != before {
		t.Errorf("the host's eth0 was %s and is %s", before, after)
	}
	must(t, inside.Do(func() error {
		return netcfg.Check(netcfg.Device{Name: "eth0", Address: netip.MustParsePrefix("10.255.7.3/32"), MTU: 1410})
	}))
}
