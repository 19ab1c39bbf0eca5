package netcfg_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"tulle/overlay/netcfg"
	"tulle/overlay/netcfg/nstest"
)

// TestRedirect: what a container sends to the range, and what comes to it, ends at
// its proxy; nothing else does.
func TestRedirect(t *testing.T) {
	nstest.NeedTUN(t)
	in, peer := nstest.New(t), nstest.New(t)
	in.TUN(t, "eth0", netip.MustParsePrefix("10.255.7.3/32"), 1450)
	nstest.Veth(t, in, peer, netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("192.0.2.2/24"))
	const proxy = 15001
	for range 2 {
		if err := netcfg.Redirect(in.File(), netip.MustParsePrefix("10.9.1.2/16"), true, proxy); err != nil {
			t.Fatal(err)
		}
	}
	listen := func(n *nstest.Namespace, at string) net.Listener {
		var l net.Listener
		if err := n.Do(func() (err error) { l, err = net.Listen("tcp4", at); return err }); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		return l
	}
	listen(in, fmt.Sprint(":", proxy))
	listen(peer, "192.0.2.2:7000")
	dial := func(n *nstest.Namespace, at string) error {
		// A socket belongs to the namespace it was made in.
		return n.Do(func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			c, err := (&net.Dialer{}).DialContext(ctx, "tcp4", at)
			if err == nil {
				err = c.Close()
			}
			return err
		})
	}
	if err := dial(in, "10.9.200.1:80"); err != nil {
		t.Errorf("out to the range: %v", err)
	}
	if err := dial(peer, "192.0.2.1:8080"); err != nil {
		t.Errorf("in: %v", err)
	}
	if err := dial(in, "192.0.2.2:7000"); err != nil {
		t.Errorf("out to another address: %v", err)
	}
	if err := dial(in, "192.0.2.2:7001"); err == nil {
		t.Error("out to another address, where nobody listens, somebody answered")
	}
	if err := netcfg.Redirect(in.File(), netip.Prefix{}, false, proxy); err != nil {
		t.Fatal(err)
	}
	if err := dial(peer, "192.0.2.1:8080"); err == nil {
		t.Error("a redirect that was taken away still holds")
	}
}
