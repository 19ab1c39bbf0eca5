package overlay

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/songgao/water"
	"github.com/vishvananda/netlink"

	"tulle/overlay/control"
	"tulle/overlay/netcfg/nstest"
	"tulle/policy"
)

// guest attaches a namespace that plays a virtual machine: its device is Ethernet, it
// takes the whole overlay for its wire, resolves its neighbours, and looks whether
// another has its address.
func (c *cell) guest(id string, of policy.AppID) *app {
	c.Helper()
	nstest.NeedTUN(c.T)
	a := &app{cell: c, id: id, conn: c.client(), ns: nstest.New(c.T)}
	var dev *water.Interface
	err := a.ns.Do(func() (err error) {
		dev, err = water.New(water.Config{DeviceType: water.TAP, PlatformSpecificParams: water.PlatformSpecificParams{Name: "eth0"}})
		return err
	})
	if err != nil {
		c.Fatal(err)
	}
	a.tun = dev.ReadWriteCloser.(*os.File)
	c.Cleanup(func() { _ = a.tun.Close() })
	if a.at, err = a.conn.Attach(c.Context(), c.request(id, of, control.LifelineConnection), a.tun, nil); err != nil {
		c.Fatalf("attach %s: %v", id, err)
	}
	err = a.ns.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		wide := func(ip netip.Addr, bits int) *netlink.Addr {
			return &netlink.Addr{IPNet: &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(bits, ip.BitLen())}}
		}
		if err := errors.Join(netlink.LinkSetMTU(link, a.at.MTU), netlink.LinkSetUp(link),
			netlink.AddrAdd(link, wide(a.addr(), 8)), netlink.AddrAdd(link, wide(a.at.Address6.Addr(), 96))); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.IPv4(10, 0, 0, 1)})
	})
	if err != nil {
		c.Fatal(err)
	}
	eventually(c.T, id+"'s IPv6 address is nobody else's", func() (ok bool) {
		err := a.ns.Do(func() error {
			link, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
			for _, x := range addrs {
				if x.IP.Equal(a.at.Address6.Addr().AsSlice()) {
					ok = x.Flags&(syscall.IFA_F_TENTATIVE|syscall.IFA_F_DADFAILED) == 0
				}
			}
			return err
		})
		return err == nil && ok
	})
	return a
}

// A guest on a TAP talks as any container: by policy, both ways, over both families,
// on its cell and across, in bulk; what is refused is refused at once, what a removed
// policy allowed is reset; and a restart of the daemon leaves it its connections.
func TestGuestOnATAP(t *testing.T) {
	p := newPlane(t)
	one, two := p.cell("one", "127.0.0.1", nil), p.cell("two", "127.0.0.2", nil)
	guest := one.guest("vm-1", "web")
	near, far := one.attach("db-1", "db", control.LifelineNone), two.attach("db-2", "db", control.LifelineConnection)
	p.allow(tcp("web", "db", 5432), tcp("db", "web", 80))
	guest.listen(80)
	guest.listen6(80)
	for _, db := range []*app{near, far} {
		db.listen(5432)
		db.listen6(5432)
		guest.reaches(db, 5432)
		c, err := guest.dial6(db, 5432)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		guest.echo(c)
		bulk(t, c)
		db.reaches(guest, 80)
		if c, err = db.dial6(guest, 80); err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		bulk(t, c)
		guest.refused(db, 5433)
		db.refused(guest, 81)
	}
	conn := guest.reaches(far, 5432)
	one.shut()
	<-guest.conn.Done()
	one.run()
	r := one.request("vm-1", "web", control.LifelineConnection)
	r.Resume = true
	guest.conn = one.client()
	if at, err := guest.conn.Attach(t.Context(), r, guest.tun, nil); err != nil || at.Address != guest.at.Address {
		t.Fatalf("resumed as %+v: %v", at, err)
	}
	guest.echo(conn)

	p.deny(tcp("web", "db", 5432))
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("an idle connection whose policy went: %v", err)
	}
	near.reaches(guest, 80) // the other policy stands
}

// bulk sends a megabyte to an echo, and takes it back.
func bulk(t *testing.T, c net.Conn) {
	t.Helper()
	const size = 1 << 20
	_ = c.SetDeadline(time.Now().Add(patience))
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, size))
		sent <- err
	}()
	if n, err := io.CopyN(io.Discard, c, size); err != nil {
		t.Errorf("%d of %d bytes came back: %v", n, size, err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}
