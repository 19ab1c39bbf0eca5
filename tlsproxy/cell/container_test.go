package cell

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tulle/overlay/control"
	"tulle/overlay/mint"
	"tulle/overlay/netcfg/nstest"
	"tulle/tlsproxy"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// The app is reached on the container's loopback; on its own address where nothing
// listens there; and where nothing listens at all it is refused.
func TestWhereTheAppIsReached(t *testing.T) {
	ns := nstest.New(t)
	own := netip.MustParseAddr("10.255.7.3")
	var sockets *mint.Sockets
	if err := ns.Do(func() (err error) {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: own.AsSlice(), Mask: net.CIDRMask(32, 32)}}); err != nil {
			return err
		}
		sockets, err = mint.Create(control.TLSPort)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	m, err := mint.New(sockets)
	if err != nil {
		t.Fatal(err)
	}
	c := newContainer(&Fleet{}, control.TLSContainer{Container: "c1", Address: own, TLS: control.TLS{Identity: control.IdentityXFCC}}, m, 1)
	defer c.close()
	if c.site.Identity != tlsproxy.IdentityXFCC {
		t.Errorf("the app is told who calls by %q", c.site.Identity)
	}

	serve := func(host string) net.Listener {
		t.Helper()
		var l net.Listener
		if err := ns.Do(func() (err error) {
			l, err = net.Listen("tcp4", net.JoinHostPort(host, "8080"))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				io.WriteString(conn, host)
				conn.Close()
			}
		}()
		return l
	}
	reached := func(when, want string) {
		t.Helper()
		conn, err := c.reach(t.Context())
		if want == "" {
			if !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("%s: %v, want a refusal", when, err)
			}
			return
		}
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		defer conn.Close()
		if got, err := io.ReadAll(conn); err != nil || string(got) != want {
			t.Errorf("%s: the app at %q answers, %v; want %s", when, got, err, want)
		}
	}
	reached("no app", "")
	other := serve(own.String())
	reached("its own address alone", own.String())
	loopback := serve("127.0.0.1")
	reached("both", "127.0.0.1")
	other.Close()
	reached("the loopback alone", "127.0.0.1")
	loopback.Close()
	reached("no app any more", "")
}
