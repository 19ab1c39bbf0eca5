package tap

import (
	"bytes"
	"io"
	"net/netip"
	"os"
	"testing"

	"github.com/songgao/water"
	"golang.org/x/sys/unix"

	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
	"tulle/overlay/tun"
)

var (
	own, other   = netip.MustParseAddr("10.255.1.2"), netip.MustParseAddr("10.255.2.3")
	own6, other6 = netip.MustParseAddr("fd00::aff:102"), netip.MustParseAddr("fd00::aff:203")
	guestMAC     = []byte{2, 0, 0, 0, 0, 7}
)

// wire is a guest's side in memory: frames it sends, and those it got.
type wire struct {
	out [][]byte
	in  [][]byte
}

func (w *wire) Read(b []byte) (int, error) {
	if len(w.out) == 0 {
		return 0, os.ErrClosed
	}
	n := copy(b, w.out[0])
	w.out = w.out[1:]
	return n, nil
}

func (w *wire) Write(b []byte) (int, error) {
	w.in = append(w.in, bytes.Clone(b))
	return len(b), nil
}
func (w *wire) Close() error { return nil }

var _ io.ReadWriteCloser = (*wire)(nil)

func frame(t uint16, payload []byte) []byte {
	b := append(append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, guestMAC...), byte(t>>8), byte(t))
	return append(b, payload...)
}

func arpFor(sender, target netip.Addr) []byte {
	b := append([]byte{0, 1, 8, 0, 6, 4, 0, 1}, guestMAC...)
	b = append(append(b, sender.AsSlice()...), 0, 0, 0, 0, 0, 0)
	return frame(typeARP, append(b, target.AsSlice()...))
}

func solicitation(from, target netip.Addr) []byte {
	body := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, target.AsSlice()...)
	return frame(typeIPv6, packet.AppendICMPv6(nil, from, netip.MustParseAddr("ff02::1:ff00:203"), 255, body))
}

// run gives the device frames and returns the packets that it read.
func run(t *testing.T, w *wire, frames ...[]byte) (packets [][]byte, d *Device) {
	t.Helper()
	d = newDevice(&water.Interface{ReadWriteCloser: w})
	d.Guest(own, own6)
	w.out = frames
	b := make([]byte, tun.MaxRead)
	for {
		n, err := d.Read(b)
		if err == tun.ErrClosed {
			return packets, d
		}
		if err != nil {
			t.Fatal(err)
		}
		packets = append(packets, bytes.Clone(b[tun.HeaderLen:n]))
	}
}

func TestEveryAddressButItsOwnIsHere(t *testing.T) {
	for _, c := range []struct {
		name     string
		frame    []byte
		answered bool
	}{
		{"another's", arpFor(own, other), true},
		{"a router's", arpFor(own, Router), true},
		{"the world's", arpFor(own, netip.MustParseAddr("192.0.2.1")), true},
		{"its own", arpFor(netip.IPv4Unspecified(), own), false},
		{"its own, gratuitous", arpFor(own, own), false},
		{"cut off", arpFor(own, other)[:40], false},
		{"another's over IPv6", solicitation(own6, other6), true},
		{"a router's over IPv6", solicitation(own6, netip.MustParseAddr("fe80::1")), true},
		{"its own over IPv6", solicitation(netip.IPv6Unspecified(), own6), false},
		{"nobody's, to find out", solicitation(netip.IPv6Unspecified(), other6), false},
	} {
		w := &wire{}
		packets, _ := run(t, w, c.frame)
		if len(packets) != 0 {
			t.Errorf("%s: the question reached the data path", c.name)
		}
		if (len(w.in) == 1) != c.answered {
			t.Errorf("%s: %d answers", c.name, len(w.in))
			continue
		}
		if !c.answered {
			continue
		}
		a := w.in[0]
		if !bytes.Equal(a[:6], guestMAC) || !bytes.Equal(a[6:12], mac[:]) {
			t.Errorf("%s: answered from % x to % x", c.name, a[6:12], a[:6])
		}
		if etherType(a) == typeIPv6 {
			var h packet.Header
			if err := packet.Parse(a[ethernetLen:], &h); err != nil || h.ICMPType != 136 || h.TTL != 255 || h.Dst != own6 || !packet.VerifyChecksum(a[ethernetLen:], &h) {
				t.Errorf("%s: %+v, %v", c.name, h, err)
			}
		}
	}
}

// broken is a wire of which the first writes end with an error.
type broken struct {
	wire
	left int
}

func (w *broken) Write(b []byte) (int, error) {
	if w.left--; w.left >= 0 {
		return 0, unix.ENOMEM
	}
	return w.wire.Write(b)
}

// An answer that the kernel had no memory for is one that is lost, and no end of the
// guest's network.
func TestAnswerThatIsLost(t *testing.T) {
	w := &broken{left: 1}
	w.out = [][]byte{arpFor(own, other), arpFor(own, other), frame(typeIPv4, packettest.UDP(netip.AddrPortFrom(own, 9), netip.AddrPortFrom(other, 53), nil))}
	d := newDevice(&water.Interface{ReadWriteCloser: w})
	d.Guest(own, own6)
	if _, err := d.Read(make([]byte, tun.MaxRead)); err != nil {
		t.Fatal(err)
	}
	if len(w.in) != 1 {
		t.Errorf("%d answers, want that to the second question", len(w.in))
	}
}

func TestPacketsLoseAndGetTheirFrames(t *testing.T) {
	at, to := netip.AddrPortFrom(own, 9), netip.AddrPortFrom(other, 53)
	p, p6 := packettest.UDP(at, to, []byte("x")), packettest.UDP(netip.AddrPortFrom(own6, 9), netip.AddrPortFrom(other6, 53), []byte("y"))
	w := &wire{}
	packets, d := run(t, w, frame(typeIPv4, p), frame(typeIPv6, p6), frame(0x88b5, p), []byte{1, 2, 3}, append([]byte{1, 1, 1, 1, 1, 1, 1}, frame(typeIPv4, p)[7:]...))
	if len(packets) != 3 || !bytes.Equal(packets[0], p) || !bytes.Equal(packets[1], p6) {
		t.Fatalf("%d packets were read", len(packets))
	}
	if err := packet.Parse(packets[2], new(packet.Header)); err != packet.ErrVersion {
		t.Errorf("what is no IP is taken for it: %v", err)
	}
	// A super-packet with a partial checksum becomes whole frames.
	for _, src := range []netip.Addr{other, other6} {
		dst, v := own, packet.Virtio{Flags: packet.VirtioNeedsChecksum, GSOType: packet.GSOTCPv4, GSOSize: 1000, CsumStart: 20, CsumOffset: 16}
		if src.Is6() {
			dst, v.GSOType, v.CsumStart = own6, packet.GSOTCPv6, 40
		}
		w.in = nil
		b := make([]byte, tun.HeaderLen)
		v.Encode(b)
		super := packettest.TCP(netip.AddrPortFrom(src, 80), netip.AddrPortFrom(dst, 9), packet.FlagACK, 1, 1, make([]byte, 2500))
		if err := d.Write(b, super[:60], super[60:]); err != nil {
			t.Fatal(err)
		}
		if len(w.in) != 3 {
			t.Fatalf("%d frames of a super-packet of three", len(w.in))
		}
		for _, f := range w.in {
			var h packet.Header
			if err := packet.Parse(f[ethernetLen:], &h); err != nil || !packet.VerifyChecksum(f[ethernetLen:], &h) || !bytes.Equal(f[:6], guestMAC) || (etherType(f) == typeIPv6) != h.IPv6 {
				t.Errorf("frame % x: %v", f[:60], err)
			}
		}
	}
}

// A guest that has sent nothing yet is asked who it is.
func TestSilentGuestIsAsked(t *testing.T) {
	w := &wire{}
	_, d := run(t, w)
	p := packettest.UDP(netip.AddrPortFrom(other, 9), netip.AddrPortFrom(own, 53), nil)
	if err := d.Write(make([]byte, tun.HeaderLen), p); err != ErrNoGuest {
		t.Errorf("got %v", err)
	}
	if len(w.in) != 1 || etherType(w.in[0]) != typeARP || !bytes.Equal(w.in[0][38:42], own.AsSlice()) {
		t.Fatalf("sent %x", w.in)
	}
}

// FuzzRead: a guest sends any frames. Nothing panics, and what is answered goes to its
// sender.
func FuzzRead(f *testing.F) {
	f.Add(arpFor(own, other))
	f.Add(solicitation(own6, other6))
	f.Add(frame(typeIPv4, packettest.UDP(netip.AddrPortFrom(own, 9), netip.AddrPortFrom(other, 53), nil)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > frameLen {
			return
		}
		w := &wire{}
		run(t, w, b)
		for _, a := range w.in {
			if !bytes.Equal(a[:6], b[6:12]) {
				t.Errorf("answered to % x", a[:6])
			}
		}
	})
}
