package netcfg_test

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"tulle/overlay/netcfg"
	"tulle/overlay/netcfg/nstest"
)

func TestRouter(t *testing.T) {
	host, other := nstest.New(t), nstest.New(t)
	dev, _ := nstest.Veth(t, host, other, netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("192.0.2.2/24"))
	var r *netcfg.Router
	if err := host.Do(func() (err error) { r, err = netcfg.OpenRouter(); return err }); err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	check := func(dst string, want netcfg.RouteKind) {
		t.Helper()
		if got, err := r.Kind(netip.MustParseAddr(dst)); err != nil || got != want {
			t.Errorf("%s: kind %d, %v, want %d", dst, got, err, want)
		}
	}
	check("192.0.2.1", netcfg.RouteHost)
	check("127.0.0.1", netcfg.RouteHost)
	check("127.200.3.4", netcfg.RouteHost)
	check("0.0.0.0", netcfg.RouteHost)
	check("192.0.2.2", netcfg.RouteAway)
	check("192.0.2.255", netcfg.RouteGroup)
	check("203.0.113.1", netcfg.RouteNone)
	err := host.Do(func() error {
		l, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr("192.0.2.77/32")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(l, a)
	})
	if err != nil {
		t.Fatal(err)
	}
	check("192.0.2.77", netcfg.RouteHost)
}

func BenchmarkRouter(b *testing.B) {
	r, err := netcfg.OpenRouter()
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	dst := netip.MustParseAddr("127.0.0.1")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Kind(dst); err != nil {
			b.Fatal(err)
		}
	}
}
