package netcfg_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tulle/overlay/netcfg"
	"tulle/overlay/netcfg/nstest"
)

var web = netcfg.Device{Name: "eth0", Address: netip.MustParsePrefix("10.255.7.3/32"), MTU: 1450}

func TestDeviceIsConfigured(t *testing.T) {
	nstest.NeedTUN(t)
	n := nstest.New(t)
	var file *os.File
	must(t, n.Do(func() (err error) {
		file, err = netcfg.CreateTUN(web.Name, 1500)
		return err
	}))
	defer file.Close()
	must(t, n.Do(func() error { return netcfg.Configure(web) }))

	must(t, n.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if link.Attrs().MTU != 1450 || link.Attrs().Flags&net.FlagUp == 0 {
			t.Errorf("eth0 is %+v", link.Attrs())
		}
		// 43 frames with all headers of the longest mode would be more than one send.
		if got := link.Attrs().GSOMaxSegs; got != 42 {
			t.Errorf("a super-packet has at most %d segments, want 42", got)
		}
		var addrs []string
		all, err := netlink.AddrList(link, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, a := range all {
			addrs = append(addrs, a.IPNet.String())
		}
		if diff := cmp.Diff([]string{"10.255.7.3/32"}, addrs); diff != "" {
			t.Errorf("addresses of eth0, IPv6 included (-want +got):\n%s", diff)
		}
		routes, err := netlink.RouteGet(net.IPv4(203, 0, 113, 9))
		if err != nil {
			return err
		}
		if len(routes) != 1 || routes[0].LinkIndex != link.Attrs().Index || !routes[0].Src.Equal(net.IPv4(10, 255, 7, 3)) || routes[0].Gw != nil {
			t.Errorf("route to the world: %v", routes)
		}
		off, err := os.ReadFile("/proc/sys/net/ipv6/conf/eth0/disable_ipv6")
		if err == nil && strings.TrimSpace(string(off)) != "1" {
			t.Errorf("disable_ipv6 is %s", off)
		}
		return netcfg.Check(web)
	}))

	t.Run("again changes nothing", func(t *testing.T) {
		must(t, n.Do(func() error { return netcfg.Configure(web) }))
		must(t, n.Do(func() error { return netcfg.Check(web) }))
	})
	t.Run("a second of that name is refused", func(t *testing.T) {
		err := n.Do(func() error { _, err := netcfg.CreateTUN("eth0", 1500); return err })
		if !errors.Is(err, netcfg.ErrExists) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("packets come with a virtio header", func(t *testing.T) {
		must(t, n.Do(func() error {
			c, err := net.Dial("udp4", "10.255.7.9:9")
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte("hello"))
			return err
		}))
		must(t, file.SetReadDeadline(time.Now().Add(5*time.Second)))
		buf := make([]byte, 65545)
		got, err := file.Read(buf)
		must(t, err)
		if got != 10+20+8+5 || buf[10]>>4 != 4 {
			t.Errorf("first packet: % x; the IPv6 stack must not have sent any", buf[:got])
		}
	})
	t.Run("it dies with its last descriptor", func(t *testing.T) {
		dup, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		must(t, err)
		must(t, file.Close())
		must(t, n.Do(func() error { return netcfg.Check(web) }))
		must(t, unix.Close(dup))
		if err := n.Do(func() error { return netcfg.Check(web) }); err == nil {
			t.Error("eth0 is still there")
		}
	})
}

// With an IPv6 address the device has that one, at once, and is the default route from
// it; nothing is sent by itself.
func TestDeviceHasBothFamilies(t *testing.T) {
	nstest.NeedTUN(t)
	n := nstest.New(t)
	file := n.TUN(t, "eth0", web.Address, web.MTU)
	both := web
	both.Address6 = netip.MustParsePrefix("fd74:756c:6c65::aff:703/128")
	for range 2 {
		must(t, n.Do(func() error { return netcfg.Configure(both) }))
	}
	must(t, n.Do(func() error {
		if err := netcfg.Check(both); err != nil {
			return err
		}
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
		if err != nil {
			return err
		}
		if len(addrs) != 1 || addrs[0].IPNet.String() != both.Address6.String() || addrs[0].Flags&unix.IFA_F_TENTATIVE != 0 {
			t.Errorf("IPv6 addresses of eth0: %v", addrs)
		}
		c, err := net.Dial("udp6", "[fd74:756c:6c65::aff:809]:9")
		if err != nil {
			return err
		}
		defer c.Close()
		if from := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr(); from != both.Address6.Addr() {
			t.Errorf("sends from %s", from)
		}
		routes, err := netlink.RouteGet(net.ParseIP("2001:db8::1"))
		if err != nil {
			return err
		}
		if len(routes) != 1 || routes[0].LinkIndex != link.Attrs().Index || !routes[0].Src.Equal(both.Address6.Addr().AsSlice()) {
			t.Errorf("route to the world: %v", routes)
		}
		_, err = c.Write([]byte("hello"))
		return err
	}))
	must(t, file.SetReadDeadline(time.Now().Add(5*time.Second)))
	buf := make([]byte, 65545)
	got, err := file.Read(buf)
	must(t, err)
	if got != 10+40+8+5 || buf[10]>>4 != 6 || buf[16] != 17 {
		t.Errorf("first packet: % x; the stack must not have sent any by itself", buf[:got])
	}
	// And off again.
	must(t, n.Do(func() error { return netcfg.Configure(web) }))
	must(t, n.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if addrs, err := netlink.AddrList(link, netlink.FAMILY_V6); err != nil || len(addrs) != 0 {
			t.Errorf("addresses left: %v, %v", addrs, err)
		}
		return nil
	}))
}

func TestCheckNamesTheDifference(t *testing.T) {
	n := nstest.New(t)
	defer n.TUN(t, "eth0", web.Address, web.MTU).Close()
	for _, c := range []struct {
		name, want string
		spoil      func(netlink.Link) error
		device     netcfg.Device
	}{
		{"as it should be", "", nil, web},
		{"no such device", "find device eth7", nil, netcfg.Device{Name: "eth7"}},
		{"not a TUN", "lo is a device, not a TUN", nil, netcfg.Device{Name: "lo"}},
		{"other MTU", "eth0 has MTU 1450, not 1390", nil, netcfg.Device{Name: "eth0", MTU: 1390}},
		{"other address", "eth0 has [10.255.7.3/32], not 10.255.7.4/32", nil,
			netcfg.Device{Name: "eth0", Address: netip.MustParsePrefix("10.255.7.4/32"), MTU: 1450}},
		{"no default route", "eth0 is not the default route", func(l netlink.Link) error {
			return netlink.RouteDel(&netlink.Route{LinkIndex: l.Attrs().Index, Scope: netlink.SCOPE_LINK,
				Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}})
		}, web},
		{"down", "eth0 is down", netlink.LinkSetDown, web},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := n.Do(func() error {
				if c.spoil != nil {
					link, err := netlink.LinkByName("eth0")
					if err != nil {
						return err
					}
					if err := c.spoil(link); err != nil {
						return err
					}
				}
				return netcfg.Check(c.device)
			})
			if got := str(err); c.want == "" && got != "" || !strings.HasPrefix(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestClashes(t *testing.T) {
	overlay := netip.MustParsePrefix("10.255.0.0/16")
	addr := func(what, a string) netcfg.Named { return netcfg.Address(what, netip.MustParseAddr(a)) }
	route := func(p string) netcfg.Named { return netcfg.Named{What: "route", Prefix: netip.MustParsePrefix(p)} }
	for _, c := range []struct {
		name  string
		thing netcfg.Named
		clash string
	}{
		{"resolver inside", addr("resolver", "10.255.255.53"), "10.255.0.0/16 holds resolver, 10.255.255.53"},
		{"mapped address inside", addr("server", "::ffff:10.255.1.1"), "holds server, 10.255.1.1"},
		{"underlay outside", addr("underlay", "10.0.0.5"), ""},
		{"IPv6 is elsewhere", addr("peer", "fd00::1"), ""},
		{"route inside", route("10.255.7.0/24"), "holds route, 10.255.7.0/24"},
		{"the same network", route("10.255.0.0/16"), "holds route"},
		{"a wider route is no clash", route("10.0.0.0/8"), ""},
		{"nor the default route", route("0.0.0.0/0"), ""},
		{"unset", netcfg.Named{What: "nothing"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := netcfg.Clashes(overlay, c.thing)
			if (err != nil) != (c.clash != "") || !strings.Contains(str(err), c.clash) {
				t.Errorf("got %v, want %q", err, c.clash)
			}
			if err != nil && !errors.Is(err, netcfg.ErrClash) {
				t.Error("not an ErrClash")
			}
		})
	}
	t.Run("all are named, each once", func(t *testing.T) {
		peer := addr("peer b", "10.255.3.1")
		got := str(netcfg.Clashes(overlay, peer, addr("peer c", "10.255.3.2"), peer))
		if strings.Count(got, "peer b") != 1 || strings.Count(got, "peer c") != 1 {
			t.Errorf("got %q", got)
		}
	})
}

func TestHostNetworksAreThoseOfTheNamespace(t *testing.T) {
	a, b := nstest.New(t), nstest.New(t)
	nameA, _ := nstest.Veth(t, a, b, netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("192.0.2.2/24"))
	must(t, a.Do(func() error {
		link, err := netlink.LinkByName(nameA)
		if err != nil {
			return err
		}
		// A table of its own, as other overlays have.
		_, far, _ := net.ParseCIDR("10.255.9.0/24")
		return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: far, Table: 77})
	}))
	var things []netcfg.Named
	must(t, a.Do(func() (err error) { things, err = netcfg.HostNetworks(); return err }))
	for _, c := range []struct{ overlay, clash string }{
		{"10.255.0.0/16", "this host's route on " + nameA + ", 10.255.9.0/24"},
		{"192.0.2.0/24", "this host's address on " + nameA + ", 192.0.2.1"},
		{"192.0.2.0/24", "this host's route on " + nameA + ", 192.0.2.0/24"},
		{"127.0.0.0/8", "this host's address on lo, 127.0.0.1"},
		{"10.254.0.0/16", ""},
	} {
		err := netcfg.Clashes(netip.MustParsePrefix(c.overlay), things...)
		if (err != nil) != (c.clash != "") || !strings.Contains(str(err), c.clash) {
			t.Errorf("%s: got %v, want %q", c.overlay, err, c.clash)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func str(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// TestThreadsAreThrownAway: the process stays where it was, whatever threads
// its goroutines happened to run on, the first one included.
func TestThreadsAreThrownAway(t *testing.T) {
	n := nstest.New(t)
	for range 200 {
		must(t, n.Do(func() error { return nil }))
	}
	for deadline := time.Now().Add(5 * time.Second); ; runtime.Gosched() {
		inside := 0
		threads, err := os.ReadDir("/proc/self/task")
		must(t, err)
		for _, thread := range threads {
			same, err := netcfg.Same(n.File(), "/proc/self/task/"+thread.Name()+"/ns/net")
			if err == nil && same { // one that has ended has no namespace
				inside++
			}
		}
		if inside == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d threads are still inside", inside)
		}
	}
	if f, err := netcfg.Open("/proc/self/ns/net"); !errors.Is(err, netcfg.ErrOwnNamespace) {
		t.Errorf("own namespace: %v, %v", f, err)
	}
}
