package overlay

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"tulle/overlay/control"
	"tulle/policy/api"
)

// Containers of two cells talk over both families, in both tunnel modes, over an
// underlay of either; a policy is one for both, and so is its end.
func TestBothFamiliesOverBothUnderlays(t *testing.T) {
	for name, c := range map[string]struct {
		mode     api.TunnelMode
		one, two string
	}{
		"vxlan over IPv4":     {api.ModeVXLAN, "127.0.0.1", "127.0.0.2"},
		"wireguard over IPv4": {api.ModeWireGuard, "127.0.0.1", "127.0.0.2"},
		"vxlan over IPv6":     {api.ModeVXLAN, "::1", "::1"},
		"wireguard over IPv6": {api.ModeWireGuard, "::1", "::1"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlane(t)
			mode := func(cfg *Config) { cfg.Mode = c.mode }
			one, two := p.cell("one", c.one, mode), p.cell("two", c.two, mode)
			p.allow(tcp("web", "db", 5432))
			web, db := one.attach("web-1", "web", control.LifelineConnection), two.attach("db-1", "db", control.LifelineConnection)
			for _, a := range []*app{web, db} {
				if e := a.status().Endpoints[0]; e.Address6 != a.at.Address6.Addr() || !a.at.Address6.IsSingleIP() {
					t.Errorf("%s has %s by its attach, %s in the status", a.id, a.at.Address6, e.Address6)
				}
			}
			db.listen(5432)
			db.listen6(5432)
			c4 := web.reaches(db, 5432)
			c6, err := web.dial6(db, 5432)
			if err != nil {
				t.Fatal(err)
			}
			defer c6.Close()
			web.echo(c6)
			if _, err := web.dial6(db, 5433); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("a port that no policy names: %v", err)
			}
			if _, err := db.dial6(web, 5432); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("the other way: %v", err)
			}
			p.deny(tcp("web", "db", 5432))
			for what, conn := range map[string]net.Conn{"IPv4": c4, "IPv6": c6} {
				_ = conn.SetDeadline(time.Now().Add(patience))
				if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("idle connection over %s after the policy went: %v", what, err)
				}
			}
		})
	}
}

// Without IPv6 a container has none, and what it sends over it all the same is nobody's.
func TestIPv4Only(t *testing.T) {
	p := newPlane(t)
	one := p.cell("one", "127.0.0.1", func(cfg *Config) { cfg.IPv4Only = true })
	web := one.attach("web-1", "web", control.LifelineConnection)
	if web.at.Address6.IsValid() || web.status().Endpoints[0].Address6.IsValid() {
		t.Errorf("has %s", web.at.Address6)
	}
	small := p.cell("small", "127.0.0.2", func(cfg *Config) { cfg.MTU = 1279 })
	if a := small.attach("web-2", "web", control.LifelineConnection).at; a.Address6.IsValid() {
		t.Errorf("has %s over an MTU of 1279", a.Address6)
	}
}

func (a *app) listen6(port uint16) {
	a.Helper()
	var l net.Listener
	err := a.ns.Do(func() (err error) {
		l, err = net.Listen("tcp6", netip.AddrPortFrom(a.at.Address6.Addr(), port).String())
		return err
	})
	if err != nil {
		a.Fatal(err)
	}
	a.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
}

func (a *app) dial6(b *app, port uint16) (c net.Conn, err error) {
	err = a.ns.Do(func() error {
		d := net.Dialer{Timeout: patience}
		c, err = d.Dial("tcp6", netip.AddrPortFrom(b.at.Address6.Addr(), port).String())
		return err
	})
	return c, err
}
