package egress_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"tulle/overlay/egress"
	"tulle/overlay/fib"
	"tulle/overlay/netcfg/nstest"
)

// dialIn dials in the world, or on the host.
func dialIn(r *rig, ns *nstest.Namespace, to string) (conn *net.TCPConn, err error) {
	r.t.Helper()
	err = ns.Do(func() error {
		d, err := net.DialTimeout("tcp", to, wait)
		if err == nil {
			conn = d.(*net.TCPConn)
			r.t.Cleanup(func() { conn.Close() })
			conn.SetDeadline(time.Now().Add(wait))
		}
		return err
	})
	return conn, err
}

// at is the container's address of a family.
func (c *ctr) at(fam family) netip.Addr {
	if fam.world.Is6() {
		return fib.Twin(c.addr)
	}
	return c.addr
}

func tcp(host string, port uint16) egress.Forward {
	return egress.Forward{Protocol: "tcp", Host: netip.MustParseAddrPort(host), Port: port}
}

func TestForwardTCPKeepsTheClient(t *testing.T) {
	both(t, func(t *testing.T, fam family) {
		r := newRig(t)
		c := r.container(1, set(t)) // a forward needs no rule of the container's
		server, conns := tcpServer(t, c.Namespace, at(c.at(fam), 0))
		if err := r.e.AddForward(c.addr, tcp(at(fam.host, 8080), server.Port())); err != nil {
			t.Fatal(err)
		}
		near, err := dialIn(r, r.world, at(fam.host, 8080))
		if err != nil {
			t.Fatal(err)
		}
		far := next(t, conns)
		if got, want := far.RemoteAddr().String(), near.LocalAddr().String(); got != want {
			t.Errorf("the container sees %s, the client is %s", got, want)
		}
		exchange(t, near, far)
		near.CloseWrite()
		if n, err := far.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("far end read %d, %v", n, err)
		}
		far.Write([]byte("x"))
		far.Close()
		if n, err := near.Read(make([]byte, 2)); n != 1 || err != nil {
			t.Errorf("near end read %d, %v", n, err)
		}

		// A rule that goes concerns no forward.
		near, err = dialIn(r, r.world, at(fam.host, 8080))
		if err != nil {
			t.Fatal(err)
		}
		far = next(t, conns)
		c.rules(set(t))
		exchange(t, near, far)

		// The host itself is shown with an address that means nobody to the container.
		near, err = dialIn(r, r.host, at(fam.host, 8080))
		if err != nil {
			t.Fatal(err)
		}
		exchange(t, near, next(t, conns))
	})
}

func TestForwardFromLoopback(t *testing.T) {
	r := newRig(t)
	c := r.container(1, set(t))
	server, conns := tcpServer(t, c.Namespace, c.addr.String()+":0")
	if err := r.e.AddForward(c.addr, tcp("127.0.0.1:8080", server.Port())); err != nil {
		t.Fatal(err)
	}
	near, err := dialIn(r, r.host, "127.0.0.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	far := next(t, conns)
	if got := far.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); got != resolver {
		t.Errorf("the container sees %v, want %v", got, resolver)
	}
	exchange(t, near, far)
	// Bound where it was asked for, and nowhere else.
	_, err = dialIn(r, r.world, "192.0.2.1:8080")
	refused(t, err)
}

func TestForwardUDPKeepsTheClient(t *testing.T) {
	both(t, func(t *testing.T, fam family) {
		r := newRig(t)
		c := r.container(1, set(t))
		server := udpServer(t, c.Namespace, at(c.at(fam), 5353))
		for _, host := range []string{at(fam.host, 53), at(fam.host, 54)} {
			if err := r.e.AddForward(c.addr, egress.Forward{Protocol: "udp", Host: netip.MustParseAddrPort(host), Port: 5353}); err != nil {
				t.Fatal(err)
			}
		}
		client := udpServer(t, r.world, at(fam.world, 40000))
		var seen []netip.AddrPort
		for _, host := range []string{at(fam.host, 53), at(fam.host, 54)} {
			if _, err := client.WriteToUDPAddrPort([]byte("question"), netip.MustParseAddrPort(host)); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 100)
			n, from, err := server.ReadFromUDPAddrPort(b)
			if err != nil || string(b[:n]) != "question" {
				t.Fatalf("%q, %v", b[:n], err)
			}
			seen = append(seen, from)
			if _, err := server.WriteToUDPAddrPort([]byte("answer"), from); err != nil {
				t.Fatal(err)
			}
			n, via, err := client.ReadFromUDPAddrPort(b)
			if err != nil || string(b[:n]) != "answer" || via.String() != host {
				t.Errorf("%q from %v, %v, want the answer from %s", b[:n], via, err, host)
			}
		}
		if want := netip.MustParseAddrPort(at(fam.world, 40000)); seen[0] != want {
			t.Errorf("the container sees %v, the client is %v", seen[0], want)
		}
		// One client over two forwards to one port: its answers must not be mixed up.
		if seen[1].Addr() != fam.resolver {
			t.Errorf("over the second forward the container sees %v, want an address of %v", seen[1], fam.resolver)
		}
	})
}

// A client of IPv6 reaches what listens on IPv4 alone, over TCP and UDP, also in a
// container whose kernel has no IPv6; its address is not seen then.
func TestForwardFromIPv6ToIPv4(t *testing.T) {
	for name, off := range map[string]bool{"on IPv4 alone": false, "without IPv6": true} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			c := r.container(1, set(t))
			if off {
				if err := c.Do(func() error { return os.WriteFile("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", []byte("1"), 0) }); err != nil {
					t.Fatal(err)
				}
			}
			server, conns := tcpServer(t, c.Namespace, at(c.addr, 0))
			if err := r.e.AddForward(c.addr, tcp("[::]:8080", server.Port())); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				near, err := dialIn(r, r.world, at(hostIP6, 8080))
				if err != nil {
					t.Fatal(err)
				}
				far := next(t, conns)
				if got := far.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); got != resolver {
					t.Errorf("the container sees %v, want %v", got, resolver)
				}
				exchange(t, near, far)
			}
			if off {
				return // nothing tells of a datagram that nobody takes
			}
			udp := udpServer(t, c.Namespace, at(c.addr, 5353))
			if err := r.e.AddForward(c.addr, egress.Forward{Protocol: "udp", Host: netip.MustParseAddrPort("[::]:53"), Port: 5353}); err != nil {
				t.Fatal(err)
			}
			client := udpServer(t, r.world, at(worldIP6, 40000))
			for _, question := range []string{"first", "second"} {
				if _, err := client.WriteToUDPAddrPort([]byte(question), netip.AddrPortFrom(hostIP6, 53)); err != nil {
					t.Fatal(err)
				}
				b := make([]byte, 100)
				n, from, err := udp.ReadFromUDPAddrPort(b)
				if err != nil || string(b[:n]) != question || from.Addr() != resolver {
					t.Fatalf("%q from %v, %v", b[:n], from, err)
				}
				if _, err := udp.WriteToUDPAddrPort([]byte("answer"), from); err != nil {
					t.Fatal(err)
				}
				if n, _, err = client.ReadFromUDPAddrPort(b); err != nil || string(b[:n]) != "answer" {
					t.Errorf("%q, %v", b[:n], err)
				}
			}
		})
	}
}

// A forward of all addresses answers from the one that was asked, whichever the host
// would take by itself.
func TestForwardUDPAnswersFromWhereItWasAsked(t *testing.T) {
	both(t, func(t *testing.T, fam family) {
		r := newRig(t)
		c := r.container(1, set(t))
		server := udpServer(t, c.Namespace, at(c.at(fam), 5353))
		second := fam.host.Next().Next().Next()
		r.address(r.host, r.veth, netip.PrefixFrom(second, second.BitLen()))
		all := netip.AddrPortFrom(netip.MustParseAddr(fam.all), 53)
		if err := r.e.AddForward(c.addr, egress.Forward{Protocol: "udp", Host: all, Port: 5353}); err != nil {
			t.Fatal(err)
		}
		client := udpServer(t, r.world, at(fam.world, 40000))
		b := make([]byte, 100)
		for _, host := range []netip.Addr{second, fam.host, second} {
			asked := netip.AddrPortFrom(host, 53)
			if _, err := client.WriteToUDPAddrPort([]byte("question"), asked); err != nil {
				t.Fatal(err)
			}
			_, from, err := server.ReadFromUDPAddrPort(b)
			if err != nil || from != netip.AddrPortFrom(fam.world, 40000) {
				t.Fatalf("question from %v, %v", from, err)
			}
			if _, err := server.WriteToUDPAddrPort([]byte("answer"), from); err != nil {
				t.Fatal(err)
			}
			if n, via, err := client.ReadFromUDPAddrPort(b); err != nil || string(b[:n]) != "answer" || via != asked {
				t.Errorf("%q from %v, %v, want the answer from %v", b[:n], via, err, asked)
			}
		}
	})
}

// A neighbour that is known by its link alone gets its answers, though the container
// cannot be shown whose they are.
func TestForwardUDPToLinkLocalClient(t *testing.T) {
	r := newRig(t)
	c := r.container(1, set(t))
	server := udpServer(t, c.Namespace, at(fib.Twin(c.addr), 5353))
	near, far := r.linkLocal(r.host, r.veth), r.linkLocal(r.world, r.peer)
	host := netip.AddrPortFrom(near.WithZone(r.peer), 53)
	if err := r.e.AddForward(c.addr, egress.Forward{Protocol: "udp", Host: netip.MustParseAddrPort("[::]:53"), Port: 5353}); err != nil {
		t.Fatal(err)
	}
	client := udpServer(t, r.world, at(far.WithZone(r.peer), 0))
	if _, err := client.WriteToUDPAddrPort([]byte("question"), host); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	n, from, err := server.ReadFromUDPAddrPort(b)
	if err != nil || string(b[:n]) != "question" || from.Addr() != resolver6 {
		t.Fatalf("%q from %v, %v", b[:n], from, err)
	}
	if _, err := server.WriteToUDPAddrPort([]byte("answer"), from); err != nil {
		t.Fatal(err)
	}
	if n, _, err := client.ReadFromUDPAddrPort(b); err != nil || string(b[:n]) != "answer" {
		t.Errorf("%q, %v", b[:n], err)
	}
}

func TestForwardRefusals(t *testing.T) {
	r := newRig(t)
	a, b := r.container(1, set(t)), r.container(2, set(t))
	tcpServer(t, r.host, "192.0.2.1:7000")
	if err := r.e.AddForward(a.addr, tcp("0.0.0.0:8080", 80)); err != nil {
		t.Fatal(err)
	}
	if err := r.e.AddForward(a.addr, tcp("0.0.0.0:8080", 81)); err != nil {
		t.Errorf("the same port for the same container: %v", err)
	}
	named := tcp("192.0.2.1:8443", 0)
	named.TLS = true
	if err := r.e.AddForward(a.addr, named); err != nil {
		t.Errorf("61443 by its name: %v", err)
	}
	for _, c := range []struct {
		name  string
		f     egress.Forward
		taken bool
		want  string
	}{
		{"ours", tcp("192.0.2.1:8080", 80), true, "forwarded to container c1 (app name-c1)"},
		{"another's", tcp("192.0.2.1:7000", 80), true, "another process"},
		{"TLS by number", tcp("192.0.2.1:9000", 61443), false, "by its name, tls"},
		{"no container port", tcp("192.0.2.1:9000", 0), false, "container's port is missing"},
		{"no host port", tcp("192.0.2.1:0", 80), false, "host's port is missing"},
		{"protocol", egress.Forward{Protocol: "sctp", Host: netip.MustParseAddrPort("192.0.2.1:1"), Port: 1}, false, `"sctp"`},
		{"not an address of the host", tcp("203.0.113.1:9000", 80), false, "203.0.113.1:9000"},
	} {
		err := r.e.AddForward(b.addr, c.f)
		if err == nil || errors.Is(err, egress.ErrTaken) != c.taken || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want taken %t and %q", c.name, err, c.taken, c.want)
		}
	}
	// UDP has ports of its own.
	if err := r.e.AddForward(b.addr, egress.Forward{Protocol: "udp", Host: netip.MustParseAddrPort("192.0.2.1:8080"), Port: 1}); err != nil {
		t.Errorf("the UDP port of that number: %v", err)
	}
}

// TestForwardIsBoundWhereAsked: at one address of the host, or at all of a family.
func TestForwardIsBoundWhereAsked(t *testing.T) {
	r := newRig(t)
	other := netip.MustParseAddr("198.51.100.7")
	r.address(r.host, r.veth, netip.PrefixFrom(other, 32))
	c := r.container(1, set(t))
	server, conns := tcpServer(t, c.Namespace, at(c.addr, 0))
	for _, row := range []struct {
		host    string
		reaches map[netip.Addr]bool
	}{
		{at(hostIP, 8080), map[netip.Addr]bool{hostIP: true, other: false, hostIP6: false}},
		{"0.0.0.0:8081", map[netip.Addr]bool{hostIP: true, other: true, hostIP6: false}},
	} {
		f := tcp(row.host, server.Port())
		if err := r.e.AddForward(c.addr, f); err != nil {
			t.Fatal(err)
		}
		for to, reaches := range row.reaches {
			near, err := dialIn(r, r.host, at(to, f.Host.Port()))
			if !reaches {
				refused(t, err)
				continue
			}
			if err != nil {
				t.Errorf("bound at %s, %v: %v", row.host, to, err)
				continue
			}
			exchange(t, near, next(t, conns))
		}
	}
}

func TestForwardEndsWithItsContainer(t *testing.T) {
	both(t, func(t *testing.T, fam family) {
		r := newRig(t)
		c := r.container(1, set(t))
		server, conns := tcpServer(t, c.Namespace, at(c.at(fam), 0))
		kept := tcp(at(fam.host, 8081), server.Port())
		kept.Keep = true
		for _, f := range []egress.Forward{tcp(at(fam.host, 8080), server.Port()), kept} {
			if err := r.e.AddForward(c.addr, f); err != nil {
				t.Fatal(err)
			}
		}
		near, err := dialIn(r, r.world, at(fam.host, 8080))
		if err != nil {
			t.Fatal(err)
		}
		next(t, conns)
		c.detach()
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client reads %v, want a reset", err)
		}
		_, err = dialIn(r, r.world, at(fam.host, 8080))
		refused(t, err)
		list := r.e.Forwards()
		if len(list) != 1 || !list[0].Waiting || list[0].Host.Port() != 8081 {
			t.Errorf("forwards %+v, want the kept one, waiting", list)
		}
		// It is the container's own when it comes back, and nobody else's meanwhile.
		other := r.container(2, set(t))
		if err := r.e.AddForward(other.addr, kept); !errors.Is(err, egress.ErrTaken) {
			t.Errorf("another container takes what is kept: %v", err)
		}
		c.inc++
		c.attach(set(t))
		if err := r.e.AddForward(c.addr, kept); err != nil {
			t.Fatal(err)
		}
		if near, err = dialIn(r, r.world, at(fam.host, 8081)); err != nil {
			t.Fatal(err)
		}
		exchange(t, near, next(t, conns))
		if !r.e.RemoveForward("c1", "tcp", kept.Host) {
			t.Error("nothing was removed")
		}
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("after the forward is removed the client reads %v, want a reset", err)
		}
		if r.e.RemoveForward("c1", "tcp", kept.Host) {
			t.Error("it was removed twice")
		}
	})
}

// A connection that the container has not answered yet ends with the forward, too.
func TestForwardEndsWhatIsUnderWay(t *testing.T) {
	var lossy atomic.Bool
	lossy.Store(true)
	tried := make(chan struct{}, 1)
	r := newRig(t, func(o *egress.Options) {
		deliver := o.Deliver
		o.Deliver = func(to netip.Addr, incarnation uint64, pieces ...[]byte) error {
			if !lossy.Load() {
				return deliver(to, incarnation, pieces...)
			}
			select {
			case tried <- struct{}{}:
			default:
			}
			return nil // lost on its way to the container; its SYN comes again
		}
	})
	c := r.container(1, set(t))
	server, _ := tcpServer(t, c.Namespace, c.addr.String()+":0")
	forward := tcp("192.0.2.1:8080", server.Port())
	if err := r.e.AddForward(c.addr, forward); err != nil {
		t.Fatal(err)
	}
	near, err := dialIn(r, r.world, "192.0.2.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	next(t, tried)
	if !r.e.RemoveForward("c1", "tcp", forward.Host) {
		t.Fatal("nothing was removed")
	}
	lossy.Store(false)
	if _, err := near.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client reads %v, want a reset", err)
	}
}

func TestForwardIsOutOfReachFromInside(t *testing.T) {
	r := newRig(t, func(o *egress.Options) {
		o.HostServices = []egress.HostService{{Addr: netip.MustParseAddrPort("192.0.2.1:8080"), Protocol: "tcp"}}
	})
	c, other := r.container(1, anything(t)), r.container(2, anything(t))
	server, conns := tcpServer(t, c.Namespace, c.addr.String()+":0")
	if err := r.e.AddForward(c.addr, tcp("0.0.0.0:8080", server.Port())); err != nil {
		t.Fatal(err)
	}
	_, err := other.dial("192.0.2.1:8080")
	refused(t, err)
	if len(conns) != 0 {
		t.Error("a container came to another through a forward of its own cell")
	}
}
