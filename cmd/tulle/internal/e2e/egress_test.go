package e2e

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"tulle/cmd/internal/demo"
	"tulle/cmd/internal/echo"
	"tulle/overlay/control"
	"tulle/overlay/netcfg/nstest"
	"tulle/policy"
)

// TestOutside is a daemon without privilege, a container under `tulle run`, and a
// world behind a veth: rules by the API, ports by the local one, whose a connection
// was, and all of it again after kill -9.
func TestOutside(t *testing.T) {
	needHost(t)
	nstest.NeedRoot(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	w := newWorld(t)
	if _, err := w.StartServer(ctx); err != nil {
		t.Fatal(err)
	}
	world := nstest.New(t)
	host, outside := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2")
	host6, outside6 := netip.MustParseAddr("2001:db8:5::1"), netip.MustParseAddr("2001:db8:5::2")
	joinHere(t, world, "world0", "world1", netip.PrefixFrom(outside, 24), netip.PrefixFrom(host, 24))
	joinHere(t, world, "world2", "world3", netip.PrefixFrom(outside6, 64), netip.PrefixFrom(host6, 64))
	cell, err := w.StartCell(ctx, "cell-1", host)
	if err != nil {
		t.Fatal(err)
	}
	web, err := w.StartApp(ctx, cell, "web", 0)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, world, 7000)
	clients := make(chan netip.AddrPort, 16)
	noting := listen(t, world, ":7001")
	go func() {
		for {
			c, err := noting.Accept()
			if err != nil {
				return
			}
			clients <- c.RemoteAddr().(*net.TCPAddr).AddrPort()
			c.Close()
		}
	}()
	want := func(outcome echo.Outcome, r echo.Request) echo.Event {
		t.Helper()
		e, err := web.Do(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		if e.Outcome != outcome {
			t.Fatalf("%s %s: %s (%s), want %s", r.Op, r.Address, e.Outcome, e.Error, outcome)
		}
		return e
	}
	at := func(port uint16) string { return netip.AddrPortFrom(outside, port).String() }
	group := func(rules ...policy.SecurityRule) time.Time {
		t.Helper()
		if err := api(t, w).PutGroup(ctx, policy.SecurityGroup{GUID: "g1", Name: "world", RunningDefault: true, Rules: rules}); err != nil {
			t.Fatal(err)
		}
		return time.Now()
	}
	open := []policy.SecurityRule{{Protocol: "tcp", Destination: outside.String(), Ports: "7000-7001"}, {Protocol: "udp", Destination: outside.String() + "," + outside6.String(), Ports: "7000"},
		{Protocol: "tcp", Destination: "2001:db8:5::/64", Ports: "7000"}}
	dial := func(until echo.Outcome) echo.Request {
		return echo.Request{Op: echo.OpDial, Address: at(7000), Until: until, Patience: 10 * time.Second}
	}

	// Nothing is allowed until somebody says so, then within a second.
	want(echo.Refused, echo.Request{Op: echo.OpDial, Address: at(7000)})
	best := time.Hour
	for try := 0; try < 4 && best > time.Second; try++ {
		group()
		want(echo.Refused, dial(echo.Refused))
		told := group(open...)
		want(echo.OK, dial(echo.OK))
		best = min(best, time.Since(told))
	}
	t.Logf("a rule was in force %v after the API's answer", best)
	if best > time.Second {
		t.Errorf("a rule took %v, want within a second", best)
	}
	want(echo.OK, echo.Request{Op: echo.OpUDP, Address: at(7000), Bytes: 4000})
	at6 := netip.AddrPortFrom(outside6, 7000).String()
	want(echo.OK, echo.Request{Op: echo.OpDial, Address: at6})
	want(echo.OK, echo.Request{Op: echo.OpUDP, Address: at6, Bytes: 4000})
	want(echo.Refused, echo.Request{Op: echo.OpDial, Address: netip.AddrPortFrom(outside6, 7001).String()})
	// The host is out of reach, with any rule.
	want(echo.Refused, echo.Request{Op: echo.OpDial, Address: netip.AddrPortFrom(host6, 7000).String()})
	want(echo.Refused, echo.Request{Op: echo.OpDial, Address: netip.AddrPortFrom(host, 22).String()})

	c, err := control.Dial(cell.Socket)
	if err != nil {
		t.Fatal(err)
	}
	list, err := c.List(ctx)
	if err != nil || len(list) != 1 {
		t.Fatalf("list %+v, %v", list, err)
	}
	container := list[0].Container
	port := control.Port{HostIP: host, HostPort: 8080, Port: demo.Port}
	if err := c.AddPort(ctx, control.PortAdd{Container: container, Port: port}); err != nil {
		t.Fatal(err)
	}
	forwarded := func() {
		t.Helper()
		client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (conn net.Conn, err error) {
			err = world.Do(func() (err error) {
				conn, err = net.DialTimeout("tcp4", netip.AddrPortFrom(port.HostIP, port.HostPort).String(), 10*time.Second)
				return err
			})
			return conn, err
		}}}
		resp, err := client.Get("http://web/")
		// A daemon that has started again takes packets of a container a moment
		// before it has bound its ports.
		for again := time.NewTicker(5 * time.Millisecond); errors.Is(err, syscall.ECONNREFUSED); resp, err = client.Get("http://web/") {
			select {
			case <-again.C:
			case <-ctx.Done():
				t.Fatal(err)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(b), "web") {
			t.Errorf("through the forward: %s %q, %v", resp.Status, b, err)
		}
	}
	forwarded()

	want(echo.OK, echo.Request{Op: echo.OpDial, Address: at(7001)})
	source := <-clients
	whose := func(c *control.Client) {
		t.Helper()
		found, err := c.NATWho(ctx, control.NATWho{Source: source})
		// The far end may have seen the connection before the daemon has noted it.
		for again := time.NewTicker(5 * time.Millisecond); err == nil && len(found) == 0 && ctx.Err() == nil; found, err = c.NATWho(ctx, control.NATWho{Source: source}) {
			<-again.C
		}
		if err != nil || len(found) != 1 || found[0].Container != container || found[0].AppName != "web" || found[0].Org != demo.Org || found[0].Remote.String() != at(7001) {
			t.Errorf("whose was %v: %+v, %v", source, found, err)
		}
	}
	whose(c)
	c.Close()

	if err := cell.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cell.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	want(echo.OK, dial(echo.OK))
	forwarded()
	if c, err = control.Dial(cell.Socket); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	whose(c)
	if err := c.RemovePort(ctx, control.PortRemove{Container: container, Port: port}); err != nil {
		t.Fatal(err)
	}
	if ports, err := c.Ports(ctx); err != nil || len(ports) != 0 {
		t.Errorf("ports %+v, %v", ports, err)
	}
	group()
	want(echo.Refused, dial(echo.Refused))
}

func listen(t *testing.T, ns *nstest.Namespace, at string) net.Listener {
	t.Helper()
	var l net.Listener
	if err := ns.Do(func() (err error) { l, err = net.Listen("tcp4", at); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}
