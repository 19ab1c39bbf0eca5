package overlay

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"tulle/overlay/control"
	"tulle/overlay/netcfg/nstest"
	"tulle/overlay/whois"
)

// curl is what Debian's curl says inside the container: status and body.
func (a *app) curl(url string) (status, body string) {
	a.Helper()
	ctx, cancel := context.WithTimeout(a.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "curl", "-sS", "-g", "-w", "\n%{http_code}", url)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := a.ns.Do(cmd.Start); err != nil {
		a.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		return err.Error(), out.String()
	}
	i := strings.LastIndexByte(out.String(), '\n')
	return out.String()[i+1:], out.String()[:i]
}

// whois asks at the resolver's address of either family.
func (a *app) whois(at string, peer netip.AddrPort, more string) (status string, got whois.Answer, body string) {
	a.Helper()
	status, body = a.curl(fmt.Sprintf("http://%s/v1/whois?peer=%s%s", at, peer, more))
	if status == "200" {
		if err := json.Unmarshal([]byte(body), &got); err != nil {
			a.Fatalf("%s: %v", body, err)
		}
	}
	return status, got, body
}

// An app learns with curl who is at the other end of its own connections, over both
// families, from its own cell and another; nobody else learns anything about them,
// and a connection that is over is nobody's.
func TestWhois(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		nstest.Skip(t, "needs curl: apt-get install curl")
	}
	p := newPlane(t)
	one, two := p.cell("one", "127.0.0.1", nil), p.cell("two", "127.0.0.2", nil)
	p.allow(tcp("web", "db", 5432))
	named := func(a *control.Attach) { a.App.Name, a.App.Space, a.App.Org = string(a.App.GUID), "prod", "acme" }
	web, near := one.attachWith("web-0", "web", control.LifelineConnection, named), two.attachWith("web-1", "web", control.LifelineConnection, named)
	db := two.attachWith("db-0", "db", control.LifelineConnection, named)
	stranger := two.attach("x-0", "x", control.LifelineConnection)
	db.listen(5432)
	db.listen6(5432)

	check := func(what, at string, c net.Conn) {
		t.Helper()
		peer := c.LocalAddr().(*net.TCPAddr).AddrPort()
		for _, more := range []string{"", "&port=5432"} {
			status, got, body := db.whois(at, peer, more)
			if status != "200" || got.AppGUID != "web" || got.Peer != peer || got.AppName != "web" || got.SpaceName != "prod" || got.SpaceGUID == "" || got.OrgName != "acme" || got.OrgGUID == "" {
				t.Errorf("%s, at %s%s: %s %s", what, at, more, status, body)
			}
		}
		if status, _, body := db.whois(at, peer, "&port=5433"); status != "404" || !strings.Contains(body, `"error":`) {
			t.Errorf("%s, another port of its own: %s %s", what, status, body)
		}
		other := netip.AddrPortFrom(peer.Addr(), peer.Port()^1)
		if status, _, body := db.whois(at, other, ""); status != "404" {
			t.Errorf("%s, another port of the peer's: %s %s", what, status, body)
		}
		for _, a := range []*app{stranger, near, web} {
			if status, _, body := a.whois(at, peer, ""); status != "404" {
				t.Errorf("%s, asked by %s: %s %s", what, a.id, status, body)
			}
		}
		c.Close()
		eventually(t, "the connection is over", func() bool {
			status, _, _ := db.whois(at, peer, "&port=5432")
			return status == "404"
		})
	}
	for _, from := range []*app{web, near} {
		c := from.reaches(db, 5432)
		check(from.id+" over IPv4", "169.254.0.2", c)
		var c6 net.Conn
		eventually(t, from.id+" connects over IPv6", func() (ok bool) {
			var err error
			c6, err = from.dial6(db, 5432)
			return err == nil
		})
		from.echo(c6)
		check(from.id+" over IPv6", "[fd00:169:254::2]", c6)
	}
	// The caller's own end is not asked about: it knows whom it called.
	c := web.reaches(db, 5432)
	defer c.Close()
	if status, _, body := web.whois("169.254.0.2", netip.AddrPortFrom(db.addr(), 5432), ""); status != "404" {
		t.Errorf("the caller asks: %s %s", status, body)
	}
	// Without the server there is the GUID, and the names that were told before.
	p.stop()
	peer := c.LocalAddr().(*net.TCPAddr).AddrPort()
	if status, got, body := db.whois("169.254.0.2", peer, ""); status != "200" || got.AppGUID != "web" || got.AppName != "web" {
		t.Errorf("without a server: %s %s", status, body)
	}
	if status, _ := db.curl("http://169.254.0.2/"); status != "404" {
		t.Errorf("another path: %s", status)
	}
	if status, _ := db.curl("http://169.254.0.2:81/"); status == "200" {
		t.Error("another port is answered")
	}
}

// Who asks about much that is not there is told to name its port, and others are
// not concerned.
func TestWhoisSearchesAreBounded(t *testing.T) {
	var a askers
	busy, quiet := netip.MustParseAddr("10.255.1.2"), netip.MustParseAddr("10.255.1.3")
	for i := range searches + 5 {
		if got := a.search(busy, time.Hour); got != (i < searches) {
			t.Errorf("search %d in a second: %t", i+1, got)
		}
	}
	if !a.search(quiet, time.Hour) {
		t.Error("another container waits for it")
	}
	if !a.search(busy, time.Hour+searchesRefresh) {
		t.Error("a second later it still waits")
	}
	for port := range uint16(20) {
		a.found(busy, port+1)
	}
	if got := a.guesses(busy); len(got) != recentPorts+2 || got[0] != 20 {
		t.Errorf("looked at first: %v", got)
	}
	a.forget(busy)
	if got := a.guesses(busy); len(got) != 2 {
		t.Errorf("after it ended: %v", got)
	}
}
