package tun_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tulle/overlay/netcfg/nstest"
	"tulle/overlay/packet"
	"tulle/overlay/ready"
	"tulle/overlay/tun"
)

func TestMain(m *testing.M) { nstest.Main(m) }

const mtu = 1450

var (
	left  = netip.MustParseAddr("10.255.1.2")
	right = netip.MustParseAddr("10.255.2.3")
)

// container is a namespace with a TUN device, and our end of it.
type container struct {
	ns   *nstest.Namespace
	addr netip.Addr
	dev  *tun.Kernel
	file *os.File
}

func newContainer(t testing.TB, addr netip.Addr) *container {
	t.Helper()
	return newContainerIn(t, addr, nil)
}

func newContainerIn(t testing.TB, addr netip.Addr, set *ready.Set) *container {
	t.Helper()
	c := &container{ns: nstest.New(t), addr: addr}
	c.file = c.ns.TUN(t, "eth0", netip.PrefixFrom(addr, 32), mtu)
	dev, err := tun.FromFileIn(c.file, set)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	c.dev = dev
	return c
}

func newSet(t testing.TB, seats int) *ready.Set {
	t.Helper()
	set, err := ready.New(seats, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { set.Close() })
	return set
}

func (c *container) listen(t testing.TB) *net.TCPListener {
	t.Helper()
	var l *net.TCPListener
	if err := c.ns.Do(func() (err error) {
		l, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.addr, 0)))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func (c *container) dial(t testing.TB, to net.Addr) *net.TCPConn {
	t.Helper()
	var conn net.Conn
	if err := c.ns.Do(func() (err error) { conn, err = net.Dial("tcp4", to.String()); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn)
}

func (c *container) udp(t testing.TB) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	if err := c.ns.Do(func() (err error) {
		conn, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.addr, 0)))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// seen is what a relay met.
type seen struct {
	reads, super, udpSuper, ecn  atomic.Int64
	maxRead, maxWrite, maxFrames atomic.Int64
	writes                       atomic.Int64
}

func raise(a *atomic.Int64, n int) {
	for old := a.Load(); int64(n) > old && !a.CompareAndSwap(old, int64(n)); old = a.Load() {
	}
}

// relay carries packets from one container to the other until its device is
// closed: whole, or split and joined again as over the wire. Every packet of a
// Linux stack must pass Parse and Check.
func relay(t testing.TB, from, to *tun.Kernel, wire bool, s *seen) error {
	b := make([]byte, tun.MaxRead)
	segments := make([]byte, packet.MaxFrames*(mtu+100))
	pieces := make([][]byte, 1)
	c := packet.NewCoalescer()
	c.UDP = to.UDPOffload()
	for {
		n, err := from.Read(b)
		if err != nil {
			return err
		}
		var v packet.Virtio
		var h packet.Header
		packet.DecodeVirtio(b, &v)
		p := b[packet.VirtioLen:n]
		if len(p) > 0 && p[0]>>4 != 4 {
			continue
		}
		if err := packet.Parse(p, &h); err != nil {
			return err
		}
		if err := v.Check(&h, len(p)); err != nil {
			t.Errorf("%+v, %+v", v, h)
			return err
		}
		s.reads.Add(1)
		if v.GSOType != packet.GSONone {
			s.super.Add(1)
		}
		if v.GSOType == packet.GSOUDPL4 {
			s.udpSuper.Add(1)
		}
		if v.GSOType&0x80 != 0 {
			s.ecn.Add(1)
		}
		raise(&s.maxRead, n)
		raise(&s.maxFrames, packet.Segments(&h, &v))
		if !wire {
			s.writes.Add(1) // before the write: what waits for the packet may look then
			raise(&s.maxWrite, n)
			pieces[0] = b[:n]
			if err := to.Write(pieces...); err != nil {
				return err
			}
			continue
		}
		at := 0
		for i := range packet.Segments(&h, &v) {
			n := packet.Split(segments[at:], p, &h, &v, i)
			var sh packet.Header
			if err := packet.Parse(segments[at:at+n], &sh); err != nil {
				return err
			}
			if n > mtu {
				t.Errorf("segment of %d bytes", n)
			}
			c.Add(segments[at:at+n], &sh)
			at += n
		}
		for g := range c.Len() {
			pieces := c.Pieces(g)
			total := 0
			for _, p := range pieces {
				total += len(p)
			}
			s.writes.Add(1)
			raise(&s.maxWrite, total)
			if err := to.Write(pieces...); err != nil {
				return err
			}
		}
		c.Reset()
	}
}

// pair makes two containers with relays both ways.
func pair(t testing.TB, wire bool) (a, b *container, s *seen) {
	t.Helper()
	return pairIn(t, wire, nil)
}

func pairIn(t testing.TB, wire bool, set *ready.Set) (a, b *container, s *seen) {
	t.Helper()
	nstest.NeedTUN(t)
	a, b, s = newContainerIn(t, left, set), newContainerIn(t, right, set), new(seen)
	var wg sync.WaitGroup
	for _, way := range [][2]*container{{a, b}, {b, a}} {
		wg.Go(func() {
			if err := relay(t, way[0].dev, way[1].dev, wire, s); err != nil && !errors.Is(err, tun.ErrClosed) {
				t.Errorf("relay: %v", err)
				a.dev.Close()
				b.dev.Close()
			}
		})
	}
	t.Cleanup(func() { a.dev.Close(); b.dev.Close(); wg.Wait() })
	return a, b, s
}

// Two kernels' TCP stacks talk over two devices of ours, 50 MB each way at once.
func TestKernelTCP(t *testing.T) {
	for _, c := range []struct {
		name  string
		wire  bool
		ecn   string
		seats int // -1: the readers are in Go's poller
	}{{"whole", false, "0", -1}, {"split and joined", true, "0", -1}, {"split and joined, ECN", true, "1", -1},
		{"whole, readers in seats", false, "0", 2}, {"whole, one seat for two", false, "0", 1}, {"whole, no seats", false, "0", 0}} {
		t.Run(c.name, func(t *testing.T) {
			var set *ready.Set
			if c.seats >= 0 {
				set = newSet(t, c.seats)
			}
			a, b, s := pairIn(t, c.wire, set)
			for _, end := range []*container{a, b} {
				if err := end.ns.Do(func() error {
					return os.WriteFile("/proc/sys/net/ipv4/tcp_ecn", []byte(c.ecn), 0)
				}); err != nil {
					t.Fatal(err)
				}
			}
			l := b.listen(t)
			client := a.dial(t, l.Addr())
			server, err := l.AcceptTCP()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { server.Close() })
			exchange(t, client, server, 50_000_000)
			t.Logf("%d reads, %d of super-packets, longest %d; %d writes, longest %d; ECN flag %d",
				s.reads.Load(), s.super.Load(), s.maxRead.Load(), s.writes.Load(), s.maxWrite.Load(), s.ecn.Load())
			if s.maxRead.Load() < 20*mtu || s.maxWrite.Load() < 20*mtu {
				t.Errorf("longest read %d, longest write %d: no super-packets", s.maxRead.Load(), s.maxWrite.Load())
			}
			if s.maxFrames.Load() > packet.MaxFrames {
				t.Errorf("a read of %d frames", s.maxFrames.Load())
			}
		})
	}
}

// exchange sends n bytes each way at the same time and checks what arrives.
func exchange(t testing.TB, x, y *net.TCPConn, n int64) {
	t.Helper()
	for _, c := range []*net.TCPConn{x, y} {
		// A relay that failed leaves both ends waiting.
		if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for i, way := range [][2]*net.TCPConn{{x, y}, {y, x}} {
		var sent [32]byte
		done := make(chan struct{})
		wg.Go(func() {
			defer close(done)
			source := io.LimitReader(rand.NewChaCha8([32]byte{byte(i)}), n)
			h := sha256.New()
			if _, err := io.Copy(way[0], io.TeeReader(source, h)); err != nil {
				t.Errorf("send: %v", err)
			}
			way[0].CloseWrite()
			h.Sum(sent[:0])
		})
		wg.Go(func() {
			h := sha256.New()
			got, err := io.Copy(h, way[1])
			if err != nil || got != n {
				t.Errorf("received %d of %d bytes: %v", got, n, err)
			}
			<-done
			if !bytes.Equal(h.Sum(nil), sent[:]) {
				t.Error("other bytes arrived than were sent")
			}
		})
	}
	wg.Wait()
}

// A UDP socket's segmented send arrives as the datagrams it stands for.
func TestKernelUDPSegments(t *testing.T) {
	for _, wire := range []bool{false, true} {
		a, b, s := pair(t, wire)
		if !a.dev.UDPOffload() {
			nstest.Skip(t, "this kernel has no UDP segmentation on TUN (Linux 6.2)")
		}
		from, to := a.udp(t), b.udp(t)
		const size, count = 1000, 20
		raw, err := from.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size) })
		if err != nil {
			t.Fatal(err)
		}
		payload := make([]byte, size*(count-1)+100)
		for i := range payload {
			payload[i] = byte(i / size)
		}
		if _, err := from.WriteToUDPAddrPort(payload, to.LocalAddr().(*net.UDPAddr).AddrPort()); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 65536)
		for i := range count {
			n, _, err := to.ReadFromUDPAddrPort(buf)
			if err != nil {
				t.Fatal(err)
			}
			if want := payload[i*size : min((i+1)*size, len(payload))]; !bytes.Equal(buf[:n], want) {
				t.Fatalf("datagram %d: %d bytes, want %d", i, n, len(want))
			}
		}
		if s.udpSuper.Load() != 1 || s.writes.Load() != 1 {
			t.Errorf("wire %v: %d super-packets read, %d writes, want 1 and 1", wire, s.udpSuper.Load(), s.writes.Load())
		}
	}
}

// A stack whose peer has a small MSS stays within what Check allows, because a
// container's device is configured with gso_max_segs.
func TestKernelSmallSegments(t *testing.T) {
	a, b, s := pair(t, true)
	l := b.listen(t)
	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, 536) })
	if err != nil {
		t.Fatal(err)
	}
	client := a.dial(t, l.Addr())
	server, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	exchange(t, client, server, 10_000_000)
	if got := s.maxFrames.Load(); got < 20 || got > packet.MaxFrames {
		t.Errorf("most segments of one read: %d", got)
	}
}

func BenchmarkKernelTCP(b *testing.B) {
	for _, wire := range []bool{false, true} {
		name := "whole"
		if wire {
			name = "split and joined"
		}
		b.Run(name, func(b *testing.B) {
			x, y, _ := pair(b, wire)
			l := y.listen(b)
			client := x.dial(b, l.Addr())
			server, err := l.AcceptTCP()
			if err != nil {
				b.Fatal(err)
			}
			go io.Copy(io.Discard, server)
			chunk := make([]byte, 1<<20)
			b.SetBytes(int64(len(chunk)))
			for b.Loop() {
				if _, err := client.Write(chunk); err != nil {
					b.Fatal(err)
				}
			}
			server.Close()
		})
	}
}
