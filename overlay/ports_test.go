package overlay

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"tulle/overlay/control"
)

// TestKeptPortWaitsForItsContainer: a port that its runtime wants kept stays bound
// between a container and the next of the same name, and is nobody else's meanwhile;
// one that is not closes at once.
func TestKeptPortWaitsForItsContainer(t *testing.T) {
	p := newPlane(t)
	one := p.cell("one", "127.0.0.1", nil)
	kept, plain := freePort(t), freePort(t)
	port := func(at netip.AddrPort, keep bool) control.Port {
		return control.Port{HostIP: at.Addr(), HostPort: at.Port(), Port: 8080, Keep: keep}
	}
	ports := func(r *control.Attach) { r.Ports = []control.Port{port(kept, true), port(plain, false)} }
	through := func(at netip.AddrPort) error {
		c, err := net.DialTimeout("tcp", at.String(), patience)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write([]byte("hello")); err != nil {
			return err
		}
		_, err = io.ReadFull(c, make([]byte, 5))
		return err
	}
	web := one.attachWith("web-1", "web", control.LifelineNone, ports)
	web.listen(8080)
	for _, at := range []netip.AddrPort{kept, plain} {
		if err := through(at); err != nil {
			t.Errorf("%v: %v", at, err)
		}
	}
	if err := one.client().Detach(t.Context(), control.Detach{Container: "web-1"}); err != nil {
		t.Fatal(err)
	}
	if err := through(plain); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the port that is not kept: %v, want refused", err)
	}
	if err := through(kept); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("the port that is kept: %v, want a reset", err)
	}
	_, device := newTUN(t)
	r := one.request("db-1", "db", control.LifelineNone)
	r.Ports = []control.Port{port(kept, false)}
	if _, err := one.client().Attach(t.Context(), r, device, nil); codeOf(err) != control.CodePortTaken || !strings.Contains(err.Error(), "container web-1") {
		t.Errorf("another container takes it: %v", err)
	}
	if s := one.status(); len(s.Endpoints) != 0 {
		t.Errorf("what was refused left %+v", s.Endpoints)
	}
	web = one.attachWith("web-1", "web", control.LifelineNone, ports)
	web.listen(8080)
	if err := through(kept); err != nil {
		t.Errorf("the port of the container that is back: %v", err)
	}
}

// TestTLSPortIsForwardedOnlyToAnAppOfItsOwn: the proxy closes whoever is no app, so
// a port of the host that leads to it would serve nobody.
func TestTLSPortIsForwardedOnlyToAnAppOfItsOwn(t *testing.T) {
	p := newPlane(t)
	one := p.cell("one", "127.0.0.1", nil)
	one.secured("web-1", "web", control.LifelineNone)
	one.attach("db-1", "db", control.LifelineNone)
	one.attachWith("old-1", "old", control.LifelineNone, func(r *control.Attach) { r.TLS = &control.TLS{Off: "the port is in use"} })
	add := func(container string) error {
		at := freePort(t)
		return one.client().AddPort(t.Context(), control.PortAdd{Container: container,
			Port: control.Port{HostIP: at.Addr(), HostPort: at.Port(), TLS: true}})
	}
	if err := add("web-1"); codeOf(err) != control.CodeBadRequest || !strings.Contains(err.Error(), "TLS proxy's") {
		t.Errorf("to the proxy: %v", err)
	}
	if ports, err := one.client().Ports(t.Context()); err != nil || len(ports) != 0 {
		t.Errorf("what was refused left %+v, %v", ports, err)
	}
	for _, container := range []string{"db-1", "old-1"} {
		if err := add(container); err != nil {
			t.Errorf("to %s, which has no proxy: %v", container, err)
		}
	}
}

func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return netip.MustParseAddrPort(l.Addr().String())
}
