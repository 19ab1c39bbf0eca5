package netstack_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tulle/overlay/netcfg"
	"tulle/overlay/netcfg/nstest"
	"tulle/overlay/netstack"
	"tulle/overlay/packet"
	"tulle/overlay/tun"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// Each family's container and somebody in the world; most tests are of both.
var (
	self  = netip.MustParseAddr("10.255.7.1")
	world = netip.MustParseAddrPort("203.0.113.9:8000")

	families = []family{
		{"IPv4", self, world},
		{"IPv6", netip.MustParseAddr("fd74:756c:6c65::aff:701"), netip.MustParseAddrPort("[2001:db8::9]:8000")},
	}
)

type family struct {
	name  string
	self  netip.Addr
	world netip.AddrPort
}

// both runs the test once a family.
func both(t *testing.T, f func(*testing.T, family)) {
	for _, fam := range families {
		t.Run(fam.name, func(t *testing.T) { f(t, fam) })
	}
}

// container is a namespace whose only way out is a Stack.
type container struct {
	*nstest.Namespace
	s *netstack.Stack
}

// start makes one. o's Device is set here.
func start(t testing.TB, o netstack.Options) *container {
	t.Helper()
	ns := nstest.New(t)
	dev, err := tun.FromFile(ns.Device(t, netcfg.Device{Name: "eth0", MTU: 1450,
		Address: netip.PrefixFrom(families[0].self, 32), Address6: netip.PrefixFrom(families[1].self, 128)}))
	if err != nil {
		t.Fatal(err)
	}
	o.MTU, o.Device = 1450, dev.Write
	s, err := netstack.New(o)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
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
			if packet.Parse(p, &h) == nil && v.Check(&h, len(p)) == nil {
				s.Inject(&h, &v, p[:h.TotalLen])
			}
		}
	}()
	t.Cleanup(func() {
		dev.Close()
		<-done
		s.Close()
	})
	return &container{ns, s}
}

func (c *container) dial(t testing.TB, to netip.AddrPort) (conn *net.TCPConn, err error) {
	t.Helper()
	err = c.Do(func() error {
		d, err := net.DialTimeout("tcp", to.String(), 10*time.Second)
		if err == nil {
			conn = d.(*net.TCPConn)
			t.Cleanup(func() { conn.Close() })
		}
		return err
	})
	return conn, err
}

// accept makes a handler of connections out of one that cares for accepted ones.
func accept(t testing.TB, f func(*netstack.Conn)) func(*netstack.Request) {
	return func(q *netstack.Request) {
		c, err := q.Accept()
		if err != nil {
			t.Errorf("accept: %v", err)
			return
		}
		f(c)
	}
}

func TestStreamsBothWaysWithHalfClose(t *testing.T) {
	both(t, func(t *testing.T, fam family) {
		where := make(chan [2]netip.AddrPort, 1)
		c := start(t, netstack.Options{Request: accept(t, func(c *netstack.Conn) {
			where <- [2]netip.AddrPort{c.Remote(), c.Local()}
			// All of it is read to its end before the first byte goes back.
			b, err := io.ReadAll(c)
			if err != nil {
				t.Errorf("read: %v", err)
			}
			if err := c.WriteAll(b); err != nil {
				t.Errorf("write: %v", err)
			}
			c.Close()
		})})
		conn, err := c.dial(t, fam.world)
		if err != nil {
			t.Fatal(err)
		}
		sent := make([]byte, 20<<20)
		rand.NewChaCha8([32]byte{1}).Read(sent)
		conn.SetDeadline(time.Now().Add(time.Minute))
		if _, err := conn.Write(sent); err != nil {
			t.Fatal(err)
		}
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(conn)
		if err != nil {
			t.Fatal(err)
		}
		if sha256.Sum256(got) != sha256.Sum256(sent) {
			t.Fatalf("%d bytes came back, other than the %d that were sent", len(got), len(sent))
		}
		at := <-where
		if want := conn.LocalAddr().String(); at[0].String() != want || at[1] != fam.world {
			t.Errorf("connection from %v to %v, want from %s to %v", at[0], at[1], want, fam.world)
		}
	})
}

func TestRefuse(t *testing.T) {
	both(t, func(t *testing.T, fam family) {
		c := start(t, netstack.Options{Request: func(q *netstack.Request) { q.Refuse() }})
		if _, err := c.dial(t, fam.world); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial: %v, want connection refused", err)
		}
	})
}

func TestDropIsTriedAgain(t *testing.T) {
	var once sync.Once
	c := start(t, netstack.Options{Request: func(q *netstack.Request) {
		dropped := false
		once.Do(func() { q.Drop(); dropped = true })
		if !dropped {
			q.Refuse()
		}
	}})
	if _, err := c.dial(t, world); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial: %v, want the second SYN refused", err)
	}
}

func TestResets(t *testing.T) {
	both(t, func(t *testing.T, fam family) {
		conns := make(chan *netstack.Conn, 2)
		c := start(t, netstack.Options{Request: accept(t, func(c *netstack.Conn) { conns <- c })})
		conn, err := c.dial(t, fam.world)
		if err != nil {
			t.Fatal(err)
		}
		(<-conns).Abort()
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read after Abort: %v, want a reset", err)
		}

		conn, err = c.dial(t, fam.world)
		if err != nil {
			t.Fatal(err)
		}
		out := <-conns
		news := make(chan struct{}, 1)
		defer out.Notify(func() {
			select {
			case news <- struct{}{}:
			default:
			}
		})()
		if _, err := out.TryRead(make([]byte, 1)); !errors.Is(err, netstack.ErrWouldBlock) {
			t.Errorf("read before anything came: %v", err)
		}
		conn.SetLinger(0)
		conn.Close()
		for {
			select {
			case <-news:
			case <-time.After(20 * time.Second):
				t.Fatal("no news of the container's reset")
			}
			if _, err := out.TryRead(make([]byte, 1)); !errors.Is(err, netstack.ErrWouldBlock) {
				if !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("read after the container's reset: %v", err)
				}
				return
			}
		}
	})
}

func TestCloseEndsConnections(t *testing.T) {
	both(t, func(t *testing.T, fam family) {
		conns := make(chan *netstack.Conn, 1)
		c := start(t, netstack.Options{Request: accept(t, func(c *netstack.Conn) { conns <- c })})
		conn, err := c.dial(t, fam.world)
		if err != nil {
			t.Fatal(err)
		}
		inside := <-conns
		c.s.Close()
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("container's read: %v, want a reset", err)
		}
		if _, err := inside.Read(make([]byte, 1)); err == nil {
			t.Error("daemon's read: no error")
		}
	})
}

func TestDialFromAnyAddress(t *testing.T) {
	both(t, func(t *testing.T, fam family) {
		c := start(t, netstack.Options{})
		var l net.Listener
		if err := c.Do(func() (err error) { l, err = net.Listen("tcp", netip.AddrPortFrom(fam.self, 0).String()); return err }); err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		to := l.Addr().(*net.TCPAddr).AddrPort()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		for _, from := range map[string][]string{"IPv4": {"198.51.100.77:40000", "8.8.8.8:0"}, "IPv6": {"[2001:db8::77]:40000", "[2606:4700::8]:0"}}[fam.name] {
			want := netip.MustParseAddrPort(from)
			in, err := c.s.Dial(ctx, want, to)
			if err != nil {
				t.Fatal(err)
			}
			got, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			peer := got.RemoteAddr().(*net.TCPAddr).AddrPort()
			if peer.Addr() != want.Addr() || want.Port() != 0 && peer != want {
				t.Errorf("the container sees %v, want %v", peer, want)
			}
			if in.Local() != peer {
				t.Errorf("Local is %v, the container sees %v", in.Local(), peer)
			}
			if _, err := got.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 5)
			if _, err := io.ReadFull(in, b); err != nil || string(b) != "hello" {
				t.Errorf("read %q, %v", b, err)
			}
			got.Close()
			in.Close()
		}
		l.Close()
		if _, err := c.s.Dial(ctx, netip.AddrPortFrom(fam.world.Addr(), 40001), to); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial of a closed port: %v, want connection refused", err)
		}
	})
}

type datagram struct {
	from, to netip.AddrPort
	b        string
}

func TestDatagrams(t *testing.T) {
	both(t, func(t *testing.T, fam family) {
		got := make(chan datagram, 4)
		c := start(t, netstack.Options{Datagram: func(from, to netip.AddrPort, b []byte) { got <- datagram{from, to, string(b)} }})
		var conn *net.UDPConn
		if err := c.Do(func() (err error) {
			conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(fam.world))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		me := conn.LocalAddr().(*net.UDPAddr).AddrPort()
		// The second is longer than the device's MTU and comes in fragments.
		for _, n := range []int{0, 700, 9000, 65487} {
			b := bytes.Repeat([]byte{byte(n)}, n)
			if _, err := conn.Write(b); err != nil {
				t.Fatal(err)
			}
			select {
			case d := <-got:
				if d.from != me || d.to != fam.world || d.b != string(b) {
					t.Errorf("%d bytes came from %v to %v, want %d from %v to %v", len(d.b), d.from, d.to, n, me, fam.world)
				}
			case <-time.After(20 * time.Second):
				t.Fatalf("datagram of %d bytes did not come", n)
			}
			if err := c.s.SendDatagram(fam.world, me, b); err != nil {
				t.Fatal(err)
			}
			back := make([]byte, 65535)
			conn.SetDeadline(time.Now().Add(20 * time.Second))
			m, err := conn.Read(back)
			if err != nil || !bytes.Equal(back[:m], b) {
				t.Fatalf("reply of %d bytes: %d, %v", n, m, err)
			}
		}
		if err := c.s.SendUnreachable(fam.world.Addr(), packet.CodePortUnreachable, packet.AppendUDP(nil, me, fam.world, nil)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("read after port unreachable: %v", err)
		}
	})
}

func TestDatagramsOfOneSuperPacket(t *testing.T) {
	both(t, func(t *testing.T, fam family) {
		got := make(chan int, 64)
		c := start(t, netstack.Options{Datagram: func(_, _ netip.AddrPort, b []byte) { got <- len(b) }})
		err := c.Do(func() error {
			conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(fam.world))
			if err != nil {
				return err
			}
			defer conn.Close()
			raw, err := conn.SyscallConn()
			if err != nil {
				return err
			}
			var serr error
			if err := raw.Control(func(fd uintptr) { serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, 1000) }); err != nil || serr != nil {
				return errors.Join(err, serr)
			}
			_, err = conn.Write(make([]byte, 2500))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []int{1000, 1000, 500} {
			select {
			case n := <-got:
				if n != want {
					t.Errorf("datagram of %d bytes, want %d", n, want)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("a datagram is missing")
			}
		}
	})
}

func TestEcho(t *testing.T) {
	both(t, func(t *testing.T, fam family) {
		type request struct {
			to netip.Addr
			b  []byte
		}
		got := make(chan request, 1)
		c := start(t, netstack.Options{Echo: func(_, to netip.Addr, b []byte) { got <- request{to, bytes.Clone(b)} }})
		// One byte and a message longer than the device's MTU.
		for _, n := range []int{1, 4000} {
			typ, reply, domain, proto := byte(8), byte(0), unix.AF_INET, unix.IPPROTO_ICMP
			if fam.self.Is6() {
				typ, reply, domain, proto = 128, 129, unix.AF_INET6, unix.IPPROTO_ICMPV6
			}
			message := append([]byte{typ, 0, 0, 0, 0, 0, 0, 1}, bytes.Repeat([]byte{7}, n)...)
			var conn net.PacketConn
			err := c.Do(func() error {
				if err := allowPing(); err != nil {
					return err
				}
				fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, proto)
				if err != nil {
					return err
				}
				conn, err = packetConn(fd)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := conn.WriteTo(message, &net.UDPAddr{IP: fam.world.Addr().AsSlice()}); err != nil {
				t.Fatal(err)
			}
			var r request
			select {
			case r = <-got:
			case <-time.After(20 * time.Second):
				t.Fatalf("echo request of %d bytes did not come", n)
			}
			if r.to != fam.world.Addr() || !bytes.Equal(r.b[8:], message[8:]) {
				t.Errorf("request of %d bytes to %v", len(r.b), r.to)
			}
			// Nothing answers but who is told to.
			conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			b := make([]byte, 8192)
			if _, _, err := conn.ReadFrom(b); err == nil {
				t.Error("a reply came that nobody sent")
			}
			if err := c.s.SendEchoReply(fam.world.Addr(), fam.self, r.b); err != nil {
				t.Fatal(err)
			}
			conn.SetReadDeadline(time.Now().Add(20 * time.Second))
			m, _, err := conn.ReadFrom(b)
			if err != nil || !bytes.Equal(b[8:m], message[8:]) || b[0] != reply {
				t.Errorf("reply of %d bytes, %v", m, err)
			}
		}
	})
}

func BenchmarkThroughput(b *testing.B) {
	for _, way := range []string{"out", "in"} {
		b.Run(way, func(b *testing.B) {
			done := make(chan struct{})
			c := start(b, netstack.Options{Request: accept(b, func(c *netstack.Conn) {
				defer close(done)
				defer c.Close()
				if way == "out" {
					io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 256<<10))
					return
				}
				chunk := make([]byte, 256<<10)
				for {
					if _, err := c.Write(chunk); err != nil {
						return
					}
				}
			})})
			conn, err := c.dial(b, world)
			if err != nil {
				b.Fatal(err)
			}
			chunk := make([]byte, 1<<20)
			b.SetBytes(int64(len(chunk)))
			for b.Loop() {
				if way == "out" {
					_, err = conn.Write(chunk)
				} else {
					_, err = io.ReadFull(conn, chunk)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
			conn.Close()
			<-done
		})
	}
}
