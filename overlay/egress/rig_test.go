package egress_test

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tulle/overlay/egress"
	"tulle/overlay/egress/rules"
	"tulle/overlay/fib"
	"tulle/overlay/netcfg"
	"tulle/overlay/netcfg/nstest"
	"tulle/overlay/packet"
	"tulle/overlay/tun"
	"tulle/policy"
)

func TestMain(m *testing.M) { nstest.Main(m) }

const wait = 20 * time.Second

var (
	overlay  = netip.MustParsePrefix("10.255.0.0/16")
	gateway  = netip.MustParseAddr("10.255.7.0")
	resolver = netip.MustParseAddr("169.254.0.2")
	hostIP   = netip.MustParseAddr("192.0.2.1")
	worldIP  = netip.MustParseAddr("192.0.2.2")

	resolver6 = netip.MustParseAddr("fd00:169:254::2")
	hostIP6   = netip.MustParseAddr("2001:db8:1::1")
	worldIP6  = netip.MustParseAddr("2001:db8:1::2")
)

// family is what a test of both families knows of one.
type family struct {
	name                  string
	host, world, resolver netip.Addr
	net, all              string // the host's network, and every address
}

var families = []family{
	{"IPv4", hostIP, worldIP, resolver, "192.0.2.0/24", "0.0.0.0"},
	{"IPv6", hostIP6, worldIP6, resolver6, "2001:db8:1::/64", "::"},
}

// both runs the test once a family.
func both(t *testing.T, f func(*testing.T, family)) {
	for _, fam := range families {
		t.Run(fam.name, func(t *testing.T) { f(t, fam) })
	}
}

func at(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }

// rig is a host whose only neighbour is the world, and an Egress on it.
//
//	container ── Egress ── host 192.0.2.1, 2001:db8:1::1 ══ …2 world
type rig struct {
	t           testing.TB
	e           *egress.Egress
	host, world *nstest.Namespace
	veth, peer  string // the host's end, and the world's

	mu      sync.Mutex
	devices map[netip.Addr]*tun.Kernel
}

func newRig(t testing.TB, change ...func(*egress.Options)) *rig {
	t.Helper()
	r := &rig{t: t, host: nstest.New(t), world: nstest.New(t), devices: map[netip.Addr]*tun.Kernel{}}
	r.veth, r.peer = nstest.Veth(t, r.host, r.world, netip.PrefixFrom(hostIP, 24), netip.PrefixFrom(worldIP, 24))
	r.address(r.host, r.veth, netip.PrefixFrom(hostIP6, 64))
	r.address(r.world, r.peer, netip.PrefixFrom(worldIP6, 64))
	var router *netcfg.Router
	if err := r.host.Do(func() (err error) { router, err = netcfg.OpenRouter(); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(router.Close)
	o := egress.Options{
		MTU: 1450, Overlay: overlay, Gateway: gateway, Resolver: resolver, Resolver6: resolver6, Router: router, Log: slog.New(slog.DiscardHandler),
		Socket: r.sockets(),
		Deliver: func(to netip.Addr, _ uint64, pieces ...[]byte) error {
			r.mu.Lock()
			d := r.devices[to]
			r.mu.Unlock()
			if d == nil {
				return errors.New("no such device")
			}
			return d.Write(pieces...)
		},
	}
	for _, f := range change {
		f(&o)
	}
	e, err := egress.New(o)
	if err != nil {
		t.Fatal(err)
	}
	r.e = e
	t.Cleanup(e.Close)
	return r
}

// sockets opens sockets of the host, on a thread that stays there.
func (r *rig) sockets() func(domain, typ, proto int) (int, error) {
	type request struct {
		domain, typ, proto int
		answer             func(int, error)
	}
	ask := make(chan request)
	var ended sync.WaitGroup
	ended.Go(func() {
		_ = r.host.Do(func() error {
			for q := range ask {
				q.answer(unix.Socket(q.domain, q.typ, q.proto))
			}
			return nil
		})
	})
	r.t.Cleanup(func() {
		close(ask)
		ended.Wait()
	})
	return func(domain, typ, proto int) (int, error) {
		var fd int
		var err error
		done := make(chan struct{})
		ask <- request{domain, typ, proto, func(f int, e error) { fd, err = f, e; close(done) }}
		<-done
		return fd, err
	}
}

// ctr is a container of the rig's.
type ctr struct {
	*nstest.Namespace
	r    *rig
	addr netip.Addr // of IPv4; its twin is IPv6's
	name string
	inc  uint64
	dev  *tun.Kernel
	file *os.File // keeps the device
	done chan struct{}
}

func (r *rig) container(n byte, set *rules.Set) *ctr {
	r.t.Helper()
	c := &ctr{Namespace: nstest.New(r.t), r: r, addr: netip.AddrFrom4([4]byte{10, 255, 7, n}), name: fmt.Sprintf("c%d", n), inc: 1}
	c.file = c.Device(r.t, netcfg.Device{Name: "eth0", MTU: 1450, Address: netip.PrefixFrom(c.addr, 32), Address6: netip.PrefixFrom(fib.Twin(c.addr), 128)})
	c.attach(set)
	r.t.Cleanup(c.detach)
	return c
}

func (c *ctr) identity() egress.Identity {
	return egress.Identity{Container: c.name, Address: c.addr, App: "app-" + c.name, AppName: "name-" + c.name, Space: "space", Org: "org"}
}

func (c *ctr) attach(set *rules.Set) {
	dev, err := tun.FromFile(c.file)
	if err != nil {
		c.r.t.Fatal(err)
	}
	c.dev, c.done = dev, make(chan struct{})
	c.r.mu.Lock()
	c.r.devices[c.addr] = dev
	c.r.mu.Unlock()
	c.r.e.Attach(c.identity(), c.inc, set)
	done, ep := c.done, &fib.Local{Addr: c.addr, Container: c.name, Incarnation: c.inc}
	go func() {
		defer close(done)
		b := make([]byte, tun.MaxRead)
		var h packet.Header
		var v packet.Virtio
		for {
			n, err := dev.Read(b)
			if err != nil {
				return
			}
			p := b[packet.VirtioLen:n]
			packet.DecodeVirtio(b, &v)
			if packet.Parse(p, &h) == nil && v.Check(&h, len(p)) == nil && fib.Name(h.Src) == ep.Addr && !overlay.Contains(fib.Name(h.Dst)) {
				c.r.e.Carry(ep, &h, &v, p[:h.TotalLen])
			}
		}
	}()
}

func (c *ctr) detach() {
	if c.dev == nil {
		return
	}
	c.r.e.Detach(c.addr, c.inc)
	c.dev.Close()
	<-c.done
	c.dev = nil
}

func (c *ctr) rules(set *rules.Set) { c.r.e.SetRules(c.addr, c.inc, set) }

func (c *ctr) dial(to string) (conn *net.TCPConn, err error) {
	err = c.Do(func() error {
		d, err := net.DialTimeout("tcp", to, wait)
		if err == nil {
			conn = d.(*net.TCPConn)
			c.r.t.Cleanup(func() { conn.Close() })
			conn.SetDeadline(time.Now().Add(wait))
		}
		return err
	})
	return conn, err
}

func (c *ctr) udp(to string) *net.UDPConn {
	c.r.t.Helper()
	var conn *net.UDPConn
	err := c.Do(func() (err error) {
		conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to)))
		return err
	})
	if err != nil {
		c.r.t.Fatal(err)
	}
	c.r.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(wait))
	return conn
}

// send puts a packet on the container's device as it is, past its kernel's routing.
func (c *ctr) send(p []byte) {
	c.r.t.Helper()
	err := c.Do(func() error {
		link, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		ip := uint16(unix.ETH_P_IP>>8 | unix.ETH_P_IP&0xff<<8)
		if p[0]>>4 == 6 {
			ip = unix.ETH_P_IPV6>>8 | unix.ETH_P_IPV6&0xff<<8
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, p, 0, &unix.SockaddrLinklayer{Protocol: ip, Ifindex: link.Index})
	})
	if err != nil {
		c.r.t.Fatal(err)
	}
}

// tcpServer listens in a namespace; what it accepts comes on the channel.
func tcpServer(t testing.TB, ns *nstest.Namespace, at string) (netip.AddrPort, <-chan *net.TCPConn) {
	t.Helper()
	var l net.Listener
	if err := ns.Do(func() (err error) { l, err = listen(at); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	got := make(chan *net.TCPConn, 64)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
			c.SetDeadline(time.Now().Add(wait))
			got <- c.(*net.TCPConn)
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort(), got
}

// network is of one family, that of the address; of both for ::.
func network(protocol, at string) string {
	switch a := netip.MustParseAddrPort(at).Addr(); {
	case a.Is4():
		return protocol + "4"
	case a == netip.IPv6Unspecified():
		return protocol
	}
	return protocol + "6"
}

func listen(at string) (net.Listener, error) { return net.Listen(network("tcp", at), at) }

func udpServer(t testing.TB, ns *nstest.Namespace, at string) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	err := ns.Do(func() (err error) {
		c, err = net.ListenUDP(network("udp", at), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(wait))
	return c
}

func next[T any](t testing.TB, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(wait):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

// until waits for a condition that another goroutine makes true.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(wait); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never came true: %s", what)
		}
	}
}

func allow(protocol, destination, ports string) policy.SecurityRule {
	return policy.SecurityRule{Protocol: protocol, Destination: destination, Ports: ports}
}

func set(t testing.TB, rs ...policy.SecurityRule) *rules.Set {
	t.Helper()
	s, bad := rules.Compile([]rules.Group{{Name: "g", Rules: rs}}, nil)
	if len(bad) > 0 {
		t.Fatal(bad)
	}
	return s
}

func anything(t testing.TB) *rules.Set { return set(t, allow("all", "0.0.0.0/0,::/0", "")) }

// exchange sends hello over conn and reads what the far end sends back.
func exchange(t testing.TB, a, b net.Conn) {
	t.Helper()
	if _, err := a.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 5)
	if _, err := io.ReadFull(b, buf); err != nil || string(buf) != "hello" {
		t.Fatalf("far end read %q, %v", buf, err)
	}
	if _, err := b.Write([]byte("world")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(a, buf); err != nil || string(buf) != "world" {
		t.Fatalf("near end read %q, %v", buf, err)
	}
}

func refused(t testing.TB, err error) {
	t.Helper()
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%v, want connection refused", err)
	}
}
