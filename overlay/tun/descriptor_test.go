package tun_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tulle/overlay/netcfg/nstest"
	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
	"tulle/overlay/tun"
)

func TestFromFDRefuses(t *testing.T) {
	nstest.NeedTUN(t)
	ns := nstest.New(t)
	open := func(t *testing.T, flags uint16) int {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		if flags != 0 {
			ifr, err := unix.NewIfreq("")
			if err != nil {
				t.Fatal(err)
			}
			ifr.SetUint16(flags)
			if err := ns.Do(func() error { return unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr) }); err != nil {
				t.Fatal(err)
			}
		}
		return fd
	}
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(null) })
	for _, c := range []struct {
		name string
		fd   int
		want error
	}{
		{"another file", null, tun.ErrNotTUN},
		{"no descriptor", -1, tun.ErrNotTUN},
		{"unattached", open(t, 0), tun.ErrNotTUN},
		{"TAP", open(t, unix.IFF_TAP|unix.IFF_NO_PI|unix.IFF_VNET_HDR), tun.ErrFlags},
		{"no virtio header", open(t, unix.IFF_TUN|unix.IFF_NO_PI), tun.ErrFlags},
		{"packet information", open(t, unix.IFF_TUN|unix.IFF_VNET_HDR), tun.ErrFlags},
	} {
		if k, err := tun.FromFD(c.fd); !errors.Is(err, c.want) || k != nil {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
	// Another queue of the same kind is fine, and a longer header is put right.
	fd := open(t, unix.IFF_TUN|unix.IFF_NO_PI|unix.IFF_VNET_HDR|unix.IFF_MULTI_QUEUE)
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, 12); err != nil {
		t.Fatal(err)
	}
	k, err := tun.FromFD(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if n, err := unix.IoctlGetInt(fd, unix.TUNGETVNETHDRSZ); err != nil || n != tun.HeaderLen {
		t.Errorf("header length is %d, %v", n, err)
	}
}

// waits are the ways in which a reader can wait.
var waits = []struct {
	name  string
	seats int // -1: in Go's poller
}{{"in the poller", -1}, {"in a seat", 1}, {"in a set without seats", 0}}

// in makes a container whose reader waits so.
func in(t *testing.T, seats int) *container {
	t.Helper()
	if seats < 0 {
		return newContainer(t, left)
	}
	return newContainerIn(t, left, newSet(t, seats))
}

func TestCloseWakesTheReader(t *testing.T) {
	for _, w := range waits {
		t.Run(w.name, func(t *testing.T) { testCloseWakesTheReader(t, in(t, w.seats)) })
	}
}

func testCloseWakesTheReader(t *testing.T, c *container) {
	failed := make(chan error, 1)
	go func() {
		b := make([]byte, tun.MaxRead)
		for {
			if _, err := c.dev.Read(b); err != nil {
				failed <- err
				return
			}
		}
	}()
	for range 2 {
		if err := c.dev.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := <-failed; !errors.Is(err, tun.ErrClosed) {
		t.Errorf("read ended with %v", err)
	}
	if err := c.dev.Write(make([]byte, 50)); !errors.Is(err, tun.ErrClosed) {
		t.Errorf("write after close: %v", err)
	}
	// The descriptor passed in is still its owner's, and the device lives.
	again, err := tun.FromFile(c.file)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func TestInterfaceDownAndGone(t *testing.T) {
	for _, w := range waits {
		t.Run(w.name, func(t *testing.T) { testInterfaceDownAndGone(t, in(t, w.seats)) })
	}
}

func testInterfaceDownAndGone(t *testing.T, c *container) {
	link := func(f func(netlink.Link) error) {
		t.Helper()
		if err := c.ns.Do(func() error {
			l, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return f(l)
		}); err != nil {
			t.Fatal(err)
		}
	}
	p := make([]byte, packet.VirtioLen)
	p = packet.AppendUDP(p, netip.AddrPortFrom(right, 1), netip.AddrPortFrom(left, 2), []byte("hello"))
	if err := c.dev.Write(p); err != nil {
		t.Errorf("up: %v", err)
	}
	link(netlink.LinkSetDown)
	if err := c.dev.Write(p); !errors.Is(err, tun.ErrDown) {
		t.Errorf("down: %v", err)
	}
	waiting := make(chan error)
	go func() {
		var err error
		for b := make([]byte, tun.MaxRead); err == nil; {
			_, err = c.dev.Read(b)
		}
		waiting <- err
	}()
	link(netlink.LinkDel)
	if err := c.dev.Write(p); !errors.Is(err, tun.ErrGone) {
		t.Errorf("write to a deleted interface: %v", err)
	}
	if err := <-waiting; !errors.Is(err, tun.ErrGone) {
		t.Errorf("reader that waits: %v", err)
	}
	if _, err := c.dev.Read(make([]byte, tun.MaxRead)); !errors.Is(err, tun.ErrGone) {
		t.Errorf("read from a deleted interface: %v", err)
	}
}

// The kernel refuses what lies; the device goes on.
func TestWriteRefused(t *testing.T) {
	c := newContainer(t, left)
	good := make([]byte, packet.VirtioLen)
	good = packet.AppendUDP(good, netip.AddrPortFrom(right, 1), netip.AddrPortFrom(left, 2), []byte("hello"))
	bad := bytes.Clone(good)
	bad[0] = packet.VirtioNeedsChecksum
	binary.NativeEndian.PutUint16(bad[6:], 60000)
	if err := c.dev.Write(bad); err == nil {
		t.Error("a checksum behind the packet was written")
	}
	if err := c.dev.Write(make([][]byte, tun.MaxPieces+1)...); !errors.Is(err, tun.ErrTooManyPieces) {
		t.Errorf("too many pieces: %v", err)
	}
	if err := c.dev.Write(good); err != nil {
		t.Error(err)
	}
}

// Local delivery writes a packet with the virtio header it was read with: what
// Check passes, whatever a container put there, no kernel refuses.
func TestKernelTakesWhatCheckPasses(t *testing.T) {
	c := newContainer(t, left)
	r := rand.New(rand.NewPCG(5, 6))
	from, to := netip.AddrPortFrom(right, 1), netip.AddrPortFrom(left, 2)
	passed := map[uint8]int{}
	for range 20000 {
		payload := make([]byte, r.IntN(3000)+1)
		p := packettest.TCP(from, to, uint8(r.UintN(256)), 1, 2, payload)
		v := packet.Virtio{CsumStart: 20, CsumOffset: 16}
		if r.IntN(2) == 0 {
			p = packettest.UDP(from, to, payload)
			v.CsumOffset = 6
		}
		v.Flags = uint8(r.IntN(4))
		v.GSOType = []uint8{0, 1, 0x81, 5, 3, 4, 0x85}[r.IntN(7)]
		v.HdrLen = uint16(r.IntN(len(p) + 10))
		v.GSOSize = uint16(r.IntN(len(p) + 1000))
		if v.GSOType == packet.GSONone {
			v.GSOSize = uint16(r.IntN(2))
		}
		var h packet.Header
		if err := packet.Parse(p, &h); err != nil {
			t.Fatal(err)
		}
		if v.Check(&h, len(p)) != nil {
			continue
		}
		passed[v.GSOType]++
		b := make([]byte, packet.VirtioLen)
		v.Encode(b)
		if err := c.dev.Write(b, p); err != nil {
			t.Fatalf("%+v with %+v: %v", v, h, err)
		}
	}
	for _, typ := range []uint8{0, 1, 0x81, 5} {
		if passed[typ] < 20 {
			t.Errorf("type %#x passed %d times: too few to show anything", typ, passed[typ])
		}
	}
}

func TestNoAllocations(t *testing.T) {
	for _, w := range waits {
		t.Run(w.name, func(t *testing.T) { testNoAllocations(t, in(t, w.seats)) })
	}
}

func testNoAllocations(t *testing.T, c *container) {
	p := make([]byte, packet.VirtioLen)
	p = packet.AppendUDP(p, netip.AddrPortFrom(right, 1), netip.AddrPortFrom(left, 2), []byte("hello"))
	pieces := [][]byte{p[:10], p[10:30], p[30:]}
	var dev tun.Device = c.dev
	if n := testing.AllocsPerRun(200, func() {
		if err := dev.Write(pieces...); err != nil {
			t.Fatal(err)
		}
	}); n != 0 && !poolsForget {
		t.Errorf("write: %v allocations", n)
	}
	// Each datagram out of the container is one read.
	conn := c.udp(t)
	b := make([]byte, tun.MaxRead)
	to := netip.AddrPortFrom(right, 9)
	if n := testing.AllocsPerRun(200, func() {
		if _, err := conn.WriteToUDPAddrPort(p, to); err != nil {
			t.Fatal(err)
		}
		if _, err := dev.Read(b); err != nil {
			t.Fatal(err)
		}
	}); n != 0 && !poolsForget {
		t.Errorf("read: %v allocations", n)
	}
}
