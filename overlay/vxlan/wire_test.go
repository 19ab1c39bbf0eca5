package vxlan_test

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"

	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
	"tulle/overlay/vxlan"
)

// superPacket is what one read of a busy container's device returns, cut into
// segments of 1398 bytes: 64 KiB, virtio header decoded.
func superPacket(t testing.TB) ([]byte, packet.Header, packet.Virtio) {
	t.Helper()
	p := packettest.TCPSegment{
		Src: netip.MustParseAddrPort("10.255.54.2:40000"), Dst: netip.MustParseAddrPort("10.255.55.3:8080"),
		Flags: packet.FlagACK, Seq: 1, Ack: 1, Window: 512, Options: []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2},
		Payload: bytes.Repeat([]byte("0123456789"), 6430),
	}.Bytes()
	v := packet.Virtio{Flags: packet.VirtioNeedsChecksum, GSOType: packet.GSOTCPv4, HdrLen: 52, GSOSize: 1398, CsumStart: 20, CsumOffset: 16}
	var h packet.Header
	if err := packet.Parse(p, &h); err != nil {
		t.Fatal(err)
	}
	if err := v.Check(&h, len(p)); err != nil {
		t.Fatal(err)
	}
	return p, h, v
}

// encode splits p into frames, one behind the other in dst, all but the last
// equally long, and returns dst and that length.
func encode(dst, p []byte, h *packet.Header, v *packet.Virtio, f *vxlan.Frame) ([]byte, int) {
	at, first := 0, 0
	for i := range packet.Segments(h, v) {
		f.Encode(dst[at:])
		n := vxlan.Overhead + packet.Split(dst[at+vxlan.Overhead:], p, h, v, i)
		if i == 0 {
			first = n
		}
		at += n
	}
	return dst[:at], first
}

// decode takes frames of length each apart and joins what is in them.
func decode(t testing.TB, b []byte, length int, c *packet.Coalescer) {
	for len(b) > 0 {
		n := min(length, len(b))
		var f vxlan.Frame
		inner, err := vxlan.Decode(b[:n], &f)
		if err != nil {
			t.Fatal(err)
		}
		var h packet.Header
		if err := packet.Parse(inner, &h); err != nil {
			t.Fatal(err)
		}
		if !packet.DecrementTTL(inner) {
			t.Fatal("no time to live")
		}
		c.Add(inner, &h)
		b = b[n:]
	}
}

// A super-packet crosses the wire and comes out as one, a hop further.
func TestSuperPacketOverTheWire(t *testing.T) {
	p, h, v := superPacket(t)
	f := vxlan.Frame{GroupID: 42, VNI: 1, DstMAC: cell55, SrcMAC: cell54}
	b, length := encode(make([]byte, 70000), p, &h, &v, &f)
	if length != 1450+vxlan.Overhead {
		t.Errorf("frames of %d bytes", length)
	}
	c := packet.NewCoalescer()
	decode(t, b, length, c)
	if c.Len() != 1 {
		t.Fatalf("%d packets came out", c.Len())
	}
	got := slices.Concat(c.Pieces(0)...)[packet.VirtioLen:]
	if len(got) != len(p) || got[8] != p[8]-1 || !bytes.Equal(got[52:], p[52:]) {
		t.Errorf("%d bytes of %d, TTL %d", len(got), len(p), got[8])
	}
}

func BenchmarkSplitAndEncode(b *testing.B) {
	p, h, v := superPacket(b)
	f := vxlan.Frame{GroupID: 42, VNI: 1, DstMAC: cell55, SrcMAC: cell54}
	dst := make([]byte, 70000)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		encode(dst, p, &h, &v, &f)
	}
}

func BenchmarkDecodeAndCoalesce(b *testing.B) {
	p, h, v := superPacket(b)
	f := vxlan.Frame{GroupID: 42, VNI: 1, DstMAC: cell55, SrcMAC: cell54}
	wire, length := encode(make([]byte, 70000), p, &h, &v, &f)
	fresh := slices.Clone(wire)
	c := packet.NewCoalescer()
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		for at := 0; at < len(wire); at += length { // headers are rewritten
			copy(fresh[at:at+vxlan.Overhead+52], wire[at:])
		}
		decode(b, fresh, length, c)
		if c.Len() != 1 || len(c.Pieces(0)) != 1+packet.Segments(&h, &v) {
			b.Fatal("not joined")
		}
		c.Reset()
	}
}
