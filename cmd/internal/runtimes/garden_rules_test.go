package runtimes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"tulle/overlay/netcfg/nstest"
	"tulle/policy"
)

// outside is a neighbour of this machine, where things listen. Its address is of the
// range for benchmarks: nobody's, and in no group that is there by default.
type outside struct {
	t  *testing.T
	ns *nstest.Namespace
}

var outsideAddr = netip.MustParseAddr("198.18.7.2")

func newOutside(t *testing.T) outside {
	t.Helper()
	o := outside{t, nstest.New(t)}
	const there, mine = "eth0", "tulle-garden0"
	up := func(name, address string) error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr(address)
		if err != nil {
			return err
		}
		return errors.Join(netlink.AddrAdd(link, addr), netlink.LinkSetUp(link))
	}
	here, err := os.Open("/proc/self/ns/net")
	must(t, err)
	defer here.Close()
	must(t, o.ns.Do(func() error {
		return errors.Join(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: there}, PeerName: mine, PeerNamespace: netlink.NsFd(int(here.Fd()))}),
			up(there, netip.PrefixFrom(outsideAddr, 24).String()))
	}))
	must(t, up(mine, netip.PrefixFrom(outsideAddr.Prev(), 24).String()))
	return o
}

func (o outside) at(port int) string { return fmt.Sprintf("%s:%d", outsideAddr, port) }

// listen echoes what comes over TCP and UDP.
func (o outside) listen(port int) {
	o.t.Helper()
	var l net.Listener
	var u net.PacketConn
	must(o.t, o.ns.Do(func() (err error) {
		if l, err = net.Listen("tcp4", o.at(port)); err == nil {
			u, err = net.ListenPacket("udp4", o.at(port))
		}
		return err
	}))
	o.t.Cleanup(func() { _, _ = l.Close(), u.Close() })
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
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = u.WriteTo(b[:n], from)
		}
	}()
}

const gardenSpace = "44444444-aaaa-4bbb-8ccc-000000000004"

// gardens is a container of Garden's as the test has it: its namespace.
type gardens struct {
	t      *testing.T
	h      *host
	handle string
	ns     *nstest.Namespace
}

func (g gardens) call(action, stdin string) (out, errs string, err error) {
	ctx, cancel := context.WithTimeout(g.t.Context(), patience)
	defer cancel()
	cmd := g.h.command(ctx, nil, "tulle-garden", "--configFile=/etc/tulle/garden.json", "--action", action, "--handle", g.handle)
	cmd.Stdin, cmd.ExtraFiles = strings.NewReader(stdin), []*os.File{g.ns.File()}
	var said, complained strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &complained
	err = cmd.Run()
	return said.String(), complained.String(), err
}

// must is call of what succeeds and has nothing to say.
func (g gardens) must(action, stdin string) {
	g.t.Helper()
	if out, errs, err := g.call(action, stdin); err != nil || errs != "" || (out == "") != (action != "up") {
		g.t.Fatalf("%s of %s: %v, stdout %q, stderr %q", action, g.handle, err, out, errs)
	}
}

func (g gardens) up(rules string) {
	g.t.Helper()
	const guid = "33333333-aaaa-4bbb-8ccc-000000000003"
	g.must("up", `{"Pid": 0, "Properties": {"policy_group_id": "`+guid+`", "app_id": "`+guid+`", "space_id": "`+gardenSpace+`", "org_id": "55555555-aaaa-4bbb-8ccc-000000000005", "container_workload": "app"}, "netin": [], "netout_rules": [`+rules+`]}`)
}

// dial is a conversation that the container begins.
func (g gardens) dial(network, to string) (c net.Conn, err error) {
	err = g.ns.Do(func() error {
		c, err = net.DialTimeout(network, to, patience)
		return err
	})
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(patience))
		g.t.Cleanup(func() { c.Close() })
	}
	return c, err
}

// serve answers HTTP in the container, with what it returns.
func (g gardens) serve(port int) string {
	g.t.Helper()
	var l net.Listener
	must(g.t, g.ns.Do(func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprint(":", port))
		return err
	}))
	g.t.Cleanup(func() { l.Close() })
	text := "here is " + g.handle
	go func() {
		_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) }))
	}()
	return text
}

// echoes says whether what is written comes back.
func echoes(c net.Conn) error {
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != "hello" {
		return fmt.Errorf("%q came back", b)
	}
	return nil
}

func (g gardens) reaches(network, to string) net.Conn {
	g.t.Helper()
	c, err := g.dial(network, to)
	if err == nil {
		err = echoes(c)
	}
	if err != nil {
		g.t.Fatalf("%s to %s/%s: %v", g.handle, to, network, err)
	}
	return c
}

func (g gardens) refused(network, to string) {
	g.t.Helper()
	c, err := g.dial(network, to)
	if err == nil {
		err = echoes(c)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		g.t.Errorf("%s to %s/%s: %v, want refused", g.handle, to, network, err)
	}
}

// testGardenRules: what a container of Garden's reaches outside is what its rules
// say, those of up and those that come later; they outlive the daemon and not the
// container, and a live connection is judged by all of them.
func testGardenRules(t *testing.T, w *world) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	world := newOutside(t)
	for _, port := range []int{7000, 7001, 7002, 7003} {
		world.listen(port)
	}
	cell, err := w.demo.StartCell(ctx, "cell-garden", netip.MustParseAddr("127.0.0.3"), "egress: {static: true}")
	must(t, err)
	h := newHost(t, cell, w.bin)
	h.configure("garden.md", 0)
	tcp := func(ports string) string {
		return `{"protocol": 1, "networks": [{"start": "` + outsideAddr.String() + `", "end": "` + outsideAddr.String() + `"}], "ports": [` + ports + `]}`
	}
	one, other := gardens{t, h, "h1", nstest.New(t)}, gardens{t, h, "h2", nstest.New(t)}
	one.up(tcp(`{"start": 7000, "end": 7000}`))
	other.up("")
	live := one.reaches("tcp4", world.at(7000))
	one.refused("tcp4", world.at(7001))
	one.refused("udp4", world.at(7000))
	other.refused("tcp4", world.at(7000))

	one.must("net-out", `{"container_ip": "", "netout_rule": {"protocol": 2, "networks": [{"start": "`+outsideAddr.String()+`"}], "ports": [{"start": 7000}]}}`)
	one.reaches("udp4", world.at(7000))
	one.refused("tcp4", world.at(7001))
	one.must("bulk-net-out", `{"netout_rules": [`+tcp(`{"start": 7001, "end": 7001}`)+`, `+tcp(`{"start": 7002, "end": 7002}`)+`]}`)
	one.reaches("tcp4", world.at(7001))
	one.reaches("tcp4", world.at(7002))
	one.refused("tcp4", world.at(7003))
	other.refused("tcp4", world.at(7001))
	if err := echoes(live); err != nil {
		t.Errorf("the connection from before: %v", err)
	}
	if _, errs, err := one.call("bulk-net-out", `{"netout_rules": [`+tcp(`{"start": 7003, "end": 7003}`)+`, {"protocol": 1, "networks": [{"start": "nowhere"}]}]}`); err == nil || !strings.Contains(errs, "rule 2: destination") {
		t.Errorf("a bad rule among good ones: %v, %q", err, errs)
	}
	one.refused("tcp4", world.at(7003))

	// A port that is asked for while it runs, where it is asked for.
	served := one.serve(8080)
	host := freePort(t)
	_, number, _ := strings.Cut(host, ":")
	mapped := `{"host_port":` + number + `,"container_port":8080}`
	if out, errs, err := one.call("net-in", `{"HostIP": "127.0.0.1", "HostPort": `+number+`, "ContainerIP": "", "ContainerPort": 8080}`); err != nil || errs != "" || strings.TrimSpace(out) != mapped {
		t.Fatalf("net-in: %v, stdout %q, stderr %q, want %s", err, out, errs, mapped)
	}
	if got := fetch(t, host); got != served {
		t.Errorf("the port answers %q", got)
	}
	if out, errs, err := other.call("net-in", `{"HostIP": "127.0.0.1", "HostPort": `+number+`, "ContainerPort": 80}`); err == nil || !strings.Contains(errs, "container h1") {
		t.Errorf("the same port for another: %q, %q, %v", out, errs, err)
	}

	must(t, cell.Kill())
	must(t, cell.Restart(ctx))
	if got := fetch(t, host); got != served {
		t.Errorf("after the daemon was killed the port answers %q", got)
	}
	one.reaches("tcp4", world.at(7002))
	one.reaches("udp4", world.at(7000))
	one.refused("tcp4", world.at(7003))
	other.refused("tcp4", world.at(7001))

	one.must("down", "null")
	if c, err := net.Dial("tcp", host); err == nil {
		c.Close()
		t.Error("the port of a container that is gone accepts")
	}
	one.up("")
	one.refused("tcp4", world.at(7000))
	one.refused("tcp4", world.at(7001))
	one.must("down", "null")
	other.must("down", "null")
	h.gone(t)

	// Where the groups decide, that is said, and nothing opens but what the groups of
	// the container's space do.
	h = w.hosts[0]
	h.configure("garden.md", 0)
	a, err := w.demo.Client()
	must(t, err)
	must(t, a.PutGroup(ctx, policy.SecurityGroup{GUID: "garden-rules", Name: "garden-rules", RunningSpaces: []string{gardenSpace},
		Rules: []policy.SecurityRule{{Protocol: "tcp", Destination: outsideAddr.String(), Ports: "7002"}}}))
	grouped := gardens{t, h, "h3", nstest.New(t)}
	grouped.up(tcp(`{"start": 7000, "end": 7000}`))
	if out, errs, err := grouped.call("net-out", `{"netout_rule": `+tcp(`{"start": 7001, "end": 7001}`)+`}`); err != nil || out != "" || !strings.Contains(errs, "kept and not in force") {
		t.Errorf("net-out where the groups decide: %v, stdout %q, stderr %q", err, out, errs)
	}
	grouped.refused("tcp4", world.at(7000))
	grouped.refused("tcp4", world.at(7001))
	bound := func() bool {
		c, err := grouped.dial("tcp4", world.at(7002))
		return err == nil && echoes(c) == nil
	}
	for again := time.NewTicker(10 * time.Millisecond); !bound(); <-again.C { // a group is a message, on its way
		if ctx.Err() != nil {
			t.Fatal("the group of the container's space does not hold for it")
		}
	}
	grouped.must("down", "null")
	h.gone(t)
}
