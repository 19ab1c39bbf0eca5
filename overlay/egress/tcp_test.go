package egress_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"tulle/overlay/egress"
	"tulle/overlay/fib"
	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
)

func TestTCP(t *testing.T) {
	both(t, func(t *testing.T, fam family) {
		r := newRig(t)
		server, conns := tcpServer(t, r.world, at(fam.world, 0))
		c := r.container(1, anything(t))
		near, err := c.dial(server.String())
		if err != nil {
			t.Fatal(err)
		}
		far := next(t, conns)
		if got := far.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); got != fam.host {
			t.Errorf("the world sees %v, want the host, %v", got, fam.host)
		}
		exchange(t, near, far)

		// Half-close either way: the other direction goes on.
		sent := make([]byte, 8<<20)
		rand.NewChaCha8([32]byte{3}).Read(sent)
		if err := near.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(far); err != nil || len(b) != 0 {
			t.Errorf("far end read %d bytes, %v", len(b), err)
		}
		go func() {
			far.Write(sent)
			far.Close()
		}()
		got, err := io.ReadAll(near)
		if err != nil || sha256.Sum256(got) != sha256.Sum256(sent) {
			t.Errorf("%d bytes, %v, want the %d sent", len(got), err, len(sent))
		}
		until(t, "conversation ended", func() bool { return r.e.Stats().Open == 0 })
	})
}

func TestResetsPass(t *testing.T) {
	both(t, func(t *testing.T, fam family) {
		r := newRig(t)
		server, conns := tcpServer(t, r.world, at(fam.world, 0))
		c := r.container(1, anything(t))
		for _, who := range []string{"far", "near"} {
			near, err := c.dial(server.String())
			if err != nil {
				t.Fatal(err)
			}
			far := next(t, conns)
			exchange(t, near, far)
			from, to := far, near
			if who == "near" {
				from, to = near, far
			}
			from.SetLinger(0)
			from.Close()
			if _, err := to.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%s end reset, the other reads %v", who, err)
			}
		}
		until(t, "conversations ended", func() bool { return r.e.Stats().Open == 0 })
	})
}

func TestRefusalsAreTheTargets(t *testing.T) {
	both(t, func(t *testing.T, fam family) {
		r := newRig(t)
		server, _ := tcpServer(t, r.world, at(fam.world, 0))
		c := r.container(1, set(t, allow("tcp", fam.world.String(), "1-65535")))
		// Nobody listens there.
		_, err := c.dial(at(fam.world, 9))
		refused(t, err)
		// No rule.
		_, err = c.dial(at(fam.world.Next(), 80))
		refused(t, err)
		// A container that was never allowed anything.
		_, err = r.container(2, set(t)).dial(server.String())
		refused(t, err)
		v := r.e.Stats().Verdicts
		if v["no_rule"] != 2 {
			t.Errorf("verdicts %v, want 2 of no_rule", v)
		}
	})
}

func TestRulesCutLiveConnections(t *testing.T) {
	both(t, func(t *testing.T, fam family) {
		r := newRig(t)
		server, conns := tcpServer(t, r.world, at(fam.world, 0))
		c := r.container(1, anything(t))
		near, err := c.dial(server.String())
		if err != nil {
			t.Fatal(err)
		}
		far := next(t, conns)
		exchange(t, near, far)
		c.rules(set(t, allow("tcp", fam.world.String(), "1-65535")))
		exchange(t, near, far) // other words, same verdict
		c.rules(set(t, allow("udp", fam.world.String(), "1-65535")))
		for name, conn := range map[string]net.Conn{"near": near, "far": far} {
			if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%s end reads %v, want a reset", name, err)
			}
		}
		_, err = c.dial(server.String())
		refused(t, err)
		c.rules(anything(t))
		if _, err := c.dial(server.String()); err != nil {
			t.Errorf("allowed again: %v", err)
		}
	})
}

func TestDetachCutsConnections(t *testing.T) {
	both(t, func(t *testing.T, fam family) {
		r := newRig(t)
		server, conns := tcpServer(t, r.world, at(fam.world, 0))
		c := r.container(1, anything(t))
		if _, err := c.dial(server.String()); err != nil {
			t.Fatal(err)
		}
		far := next(t, conns)
		c.detach()
		if _, err := far.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("far end reads %v, want a reset", err)
		}
		until(t, "conversation ended", func() bool { return r.e.Stats().Open == 0 })
	})
}

func TestServicesAtTheResolver(t *testing.T) {
	both(t, func(t *testing.T, fam family) {
		who := make(chan egress.Identity, 1)
		r := newRig(t, func(o *egress.Options) {
			o.Services = map[uint16]egress.Service{80: func(id egress.Identity, conn net.Conn) {
				who <- id
				b, _ := io.ReadAll(conn)
				conn.Write(bytes.ToUpper(b))
				conn.Close()
			}}
		})
		c := r.container(1, set(t)) // no rule is needed
		conn, err := c.dial(at(fam.resolver, 80))
		if err != nil {
			t.Fatal(err)
		}
		conn.Write([]byte("hello"))
		conn.CloseWrite()
		if b, err := io.ReadAll(conn); err != nil || string(b) != "HELLO" {
			t.Errorf("%q, %v", b, err)
		}
		if id := next(t, who); id != c.identity() {
			t.Errorf("asked by %+v, want %+v", id, c.identity())
		}
		_, err = c.dial(at(fam.resolver, 81))
		refused(t, err)
	})
}

func TestLimits(t *testing.T) {
	now := time.Now()
	r := newRig(t, func(o *egress.Options) {
		o.Limits = egress.Limits{Rate: 1, Burst: 3, PerDestination: 5}
		o.Now = func() time.Time { return now } // no token comes back
	})
	a, conns := tcpServer(t, r.world, "192.0.2.2:0")
	b, _ := tcpServer(t, r.world, "192.0.2.2:0")
	c := r.container(1, anything(t))
	for i := range 3 {
		if _, err := c.dial(a.String()); err != nil {
			t.Fatalf("connection %d of the burst: %v", i+1, err)
		}
		next(t, conns)
	}
	_, err := c.dial(a.String())
	refused(t, err)
	// Another destination, and another container, have a burst of their own.
	if _, err := c.dial(b.String()); err != nil {
		t.Errorf("other destination: %v", err)
	}
	if _, err := r.container(2, anything(t)).dial(a.String()); err != nil {
		t.Errorf("other container: %v", err)
	}
	if v := r.e.Stats().Verdicts["rate_limit"]; v != 1 {
		t.Errorf("%d refusals for the rate, want 1", v)
	}
}

// TestOpenCap: a container has so many conversations in all, of whatever kind and
// with whomever; another container has its own.
func TestOpenCap(t *testing.T) {
	r := newRig(t, func(o *egress.Options) { o.Limits = egress.Limits{Open: 2} })
	a, conns := tcpServer(t, r.world, "192.0.2.2:0")
	b, _ := tcpServer(t, r.world, "192.0.2.2:0")
	udp := udpServer(t, r.world, "192.0.2.2:5000")
	c := r.container(1, anything(t))
	first, err := c.dial(a.String())
	if err != nil {
		t.Fatal(err)
	}
	next(t, conns)
	c.udp("192.0.2.2:5000").Write([]byte("x"))
	if _, _, err := udp.ReadFromUDPAddrPort(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	_, err = c.dial(b.String())
	refused(t, err)
	if v := r.e.Stats().Verdicts["connection_limit"]; v != 1 {
		t.Errorf("%d refusals for the cap, want 1", v)
	}
	if _, err := r.container(2, anything(t)).dial(a.String()); err != nil {
		t.Errorf("another container: %v", err)
	}
	until(t, "all are counted", func() bool { return r.e.Stats().Open == 3 })
	first.SetLinger(0)
	first.Close()
	until(t, "the cap has room", func() bool { return r.e.Stats().Open == 2 })
	if _, err := c.dial(b.String()); err != nil {
		t.Errorf("after one ended: %v", err)
	}
}

func TestDryRunAndCap(t *testing.T) {
	now := time.Now()
	r := newRig(t, func(o *egress.Options) {
		o.Limits = egress.Limits{Rate: 1, Burst: 1, DryRun: true, PerDestination: 3}
		o.Now = func() time.Time { return now }
	})
	server, conns := tcpServer(t, r.world, "192.0.2.2:0")
	c := r.container(1, anything(t))
	var first *net.TCPConn
	for i := range 3 {
		conn, err := c.dial(server.String())
		if err != nil {
			t.Fatalf("connection %d: %v", i+1, err)
		}
		next(t, conns)
		if first == nil {
			first = conn
		}
	}
	until(t, "3 are allowed, of which 2 are beyond the rate", func() bool {
		v := r.e.Stats().Verdicts
		return v["rate_limit"] == 2 && v["allowed"] == 3
	})
	_, err := c.dial(server.String())
	refused(t, err)
	until(t, "all are counted", func() bool { return r.e.Stats().Open == 3 })
	first.SetLinger(0)
	first.Close()
	until(t, "the cap has room", func() bool { return r.e.Stats().Open == 2 })
	if _, err := c.dial(server.String()); err != nil {
		t.Errorf("after one ended: %v", err)
	}
}

// What comes in fragments, or with extension headers, is what it is without.
func TestAwkwardPackets(t *testing.T) {
	r := newRig(t)
	r.allowPing()
	_, conns := tcpServer(t, r.world, at(worldIP6, 7000))
	server := udpServer(t, r.world, at(worldIP6, 7000))
	c := r.container(1, anything(t))
	from, to := netip.AddrPortFrom(fib.Twin(c.addr), 4000), netip.AddrPortFrom(worldIP6, 7000)
	options := func(next uint8) []byte { return []byte{next, 0, 1, 4, 0, 0, 0, 0} }
	// send sends the packet's payload in parts, behind extension headers.
	send := func(p []byte, first uint8, ext func(offset int, more bool) []byte, cuts ...int) {
		t.Helper()
		body := p[40:]
		for i, begin := range append([]int{0}, cuts...) {
			end := len(body)
			if i < len(cuts) {
				end = cuts[i]
			}
			c.send(packettest.IPv6{Src: from.Addr(), Dst: to.Addr(), First: first, Extensions: ext(begin, end < len(body)), Payload: body[begin:end]}.Bytes())
		}
	}
	send(packettest.TCP(from, to, packet.FlagSYN, 1, 0, nil), 60, func(int, bool) []byte { return options(6) })
	next(t, conns)
	from = netip.AddrPortFrom(from.Addr(), 4001)
	send(packettest.TCP(from, to, packet.FlagSYN, 1, 0, make([]byte, 100)), 44, func(at int, more bool) []byte { return packettest.Fragment6(6, at, more, 7) }, 48, 96)
	next(t, conns)
	b := make([]byte, 100)
	send(packettest.UDP(from, to, []byte("hop by hop, and in an atomic fragment")), 0, func(int, bool) []byte { return append(options(44), packettest.Fragment6(17, 0, false, 8)...) })
	if n, _, err := server.ReadFromUDPAddrPort(b); err != nil || string(b[:n]) != "hop by hop, and in an atomic fragment" {
		t.Errorf("%q, %v", b[:n], err)
	}
	// Nobody's echo is answered, in one piece or in many.
	nobody := worldIP6.Next().Next()
	if b, err := c.ping(nobody.String(), nil, 300*time.Millisecond); err == nil {
		t.Errorf("a reply of %q from nobody", b)
	}
	if b, err := c.ping(nobody.String(), make([]byte, 4000), 300*time.Millisecond); err == nil {
		t.Errorf("a reply of %d bytes from nobody", len(b))
	}
}
