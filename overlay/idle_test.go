package overlay

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"tulle/overlay/control"
	"tulle/policy/api"
)

// A removed policy ends an idle connection across cells at both its ends, in either
// tunnel mode, with nobody sending anything.
func TestRemovedPolicyCutsIdleConnections(t *testing.T) {
	for _, mode := range []api.TunnelMode{api.ModeVXLAN, api.ModeWireGuard} {
		t.Run(string(mode), func(t *testing.T) {
			p := newPlane(t)
			of := func(c *Config) { c.Mode = mode }
			one, two := p.cell("one", "127.0.0.1", of), p.cell("two", "127.0.0.2", of)
			p.allow(tcp("web", "db", 5432))
			web, db := one.attach("web-1", "web", control.LifelineConnection), two.attach("db-1", "db", control.LifelineConnection)
			var l net.Listener
			err := db.ns.Do(func() (err error) {
				l, err = net.Listen("tcp4", netip.AddrPortFrom(db.addr(), 5432).String())
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			var near net.Conn
			eventually(t, "web connects to db", func() bool {
				near, err = web.dial(db, 5432, patience)
				return err == nil
			})
			defer near.Close()
			far, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer far.Close()
			ended := make(chan error, 2)
			for _, c := range []net.Conn{near, far} {
				_ = c.SetReadDeadline(time.Now().Add(patience))
				go func() {
					_, err := c.Read(make([]byte, 1))
					ended <- err
				}()
			}
			begun := time.Now()
			p.deny(tcp("web", "db", 5432))
			for range 2 {
				if err := <-ended; !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("an end of the connection reads %v, want %v", err, syscall.ECONNRESET)
				}
			}
			t.Logf("both ends after %s", time.Since(begun))
		})
	}
}
