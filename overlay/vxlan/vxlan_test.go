package vxlan_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tulle/overlay/vxlan"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var (
	cell54 = vxlan.MACFor(netip.MustParseAddr("10.255.54.0"))
	cell55 = vxlan.MACFor(netip.MustParseAddr("10.255.55.0"))
)

// vectors are frames as silk and Linux send them.
var vectors = []struct {
	name, hex string
	want      vxlan.Frame
}{
	{
		"tagged", "88 00 002a 000001 00 eeee0aff3700 eeee0aff3600 0800",
		vxlan.Frame{GroupID: 42, VNI: 1, DstMAC: cell55, SrcMAC: cell54},
	},
	{
		"source without any policy", "08 00 0000 000001 00 eeee0aff3700 eeee0aff3600 0800",
		vxlan.Frame{VNI: 1, DstMAC: cell55, SrcMAC: cell54},
	},
	{
		"IPv6", "88 00 002a 000001 00 eeee0aff3700 eeee0aff3600 86dd",
		vxlan.Frame{GroupID: 42, VNI: 1, DstMAC: cell55, SrcMAC: cell54, IPv6: true},
	},
	{
		"greatest numbers", "88 00 ffff ffffff 00 ffffffffffff 000000000000 0800",
		vxlan.Frame{GroupID: 0xffff, VNI: 0xffffff, DstMAC: vxlan.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}},
	},
}

func TestMACFor(t *testing.T) {
	if want := (vxlan.MAC{0xee, 0xee, 0x0a, 0xff, 0x36, 0x00}); cell54 != want {
		t.Errorf("got % x, want % x", cell54, want)
	}
}

func TestVectors(t *testing.T) {
	inner := []byte("inner packet")
	for _, v := range vectors {
		t.Run(v.name, func(t *testing.T) {
			b := unhex(t, v.hex)
			got := bytes.Repeat([]byte{0xa5}, vxlan.Overhead+1)
			v.want.Encode(got)
			if !bytes.Equal(got[:vxlan.Overhead], b) || got[vxlan.Overhead] != 0xa5 {
				t.Errorf("encodes to % x, want % x", got, b)
			}
			f := vxlan.Frame{GroupID: 9, VNI: 9, DstMAC: cell54, SrcMAC: cell55} // a used one
			rest, err := vxlan.Decode(append(b, inner...), &f)
			if err != nil || !bytes.Equal(rest, inner) {
				t.Errorf("inner is %q, error %v", rest, err)
			}
			if d := cmp.Diff(v.want, f); d != "" {
				t.Errorf("decoded (-want +got):\n%s", d)
			}
			for n := range b {
				if rest, err := vxlan.Decode(b[:n], &f); !errors.Is(err, vxlan.ErrShort) || rest != nil {
					t.Errorf("the first %d bytes: %v", n, err)
				}
			}
		})
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, c := range []struct {
		name, hex string
		want      error
	}{
		{"no I bit", "80 00 002a 000001 00 eeee0aff3700 eeee0aff3600 0800", vxlan.ErrFlags},
		{"no flag at all", "00 00 0000 000001 00 eeee0aff3700 eeee0aff3600 0800", vxlan.ErrFlags},
		{"ARP", "08 00 0000 000001 00 ffffffffffff eeee0aff3600 0806", vxlan.ErrEtherType},
		{"MPLS", "08 00 0000 000001 00 eeee0aff3700 eeee0aff3600 8847", vxlan.ErrEtherType},
		{"VLAN", "08 00 0000 000001 00 eeee0aff3700 eeee0aff3600 8100", vxlan.ErrEtherType},
	} {
		var f vxlan.Frame
		if inner, err := vxlan.Decode(unhex(t, c.hex), &f); !errors.Is(err, c.want) || inner != nil {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
}

// Of the first four bytes, G, I and the group mean something; every value of the
// others changes nothing.
func TestReservedBitsAreIgnored(t *testing.T) {
	want := vxlan.Frame{GroupID: 42, VNI: 1, DstMAC: cell55, SrcMAC: cell54}
	for first := range 256 {
		for second := range 256 {
			b := make([]byte, vxlan.Overhead)
			want.Encode(b)
			b[0], b[1], b[7] = byte(first), byte(second), byte(second)
			var f vxlan.Frame
			_, err := vxlan.Decode(b, &f)
			if first&0x08 == 0 {
				if !errors.Is(err, vxlan.ErrFlags) {
					t.Fatalf("% x: got %v", b[:8], err)
				}
				continue
			}
			w := want
			if first&0x80 == 0 {
				w.GroupID = 0 // without G the field is reserved too
			}
			if err != nil || f != w {
				t.Fatalf("% x: got %+v, %v", b[:8], f, err)
			}
		}
	}
}

// FuzzDecode: anyone on the underlay sends the bytes. Accepted, they lie within
// the datagram and encode to themselves but for reserved bits.
func FuzzDecode(f *testing.F) {
	for _, v := range vectors {
		f.Add(unhex(f, v.hex))
		f.Add(append(unhex(f, v.hex), "inner"...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var fr vxlan.Frame
		inner, err := vxlan.Decode(b, &fr)
		if (err == nil) != (inner != nil) {
			t.Fatalf("inner %v with error %v", inner, err)
		}
		if err != nil {
			return
		}
		if len(inner) != len(b)-vxlan.Overhead {
			t.Errorf("inner is %d of %d bytes", len(inner), len(b))
		}
		again := make([]byte, vxlan.Overhead)
		fr.Encode(again)
		b[0] &= 0x88
		b[1], b[7] = 0, 0
		if b[0]&0x80 == 0 {
			b[2], b[3] = 0, 0
		} else if b[2] == 0 && b[3] == 0 {
			b[0] &^= 0x80 // group 0 is none
		}
		if !bytes.Equal(again, b[:vxlan.Overhead]) {
			t.Errorf("encodes to % x, was % x", again, b[:vxlan.Overhead])
		}
	})
}

func TestNoAllocations(t *testing.T) {
	b := make([]byte, 1500)
	var f vxlan.Frame
	vectors[0].want.Encode(b)
	if n := testing.AllocsPerRun(100, func() {
		vectors[0].want.Encode(b)
		if _, err := vxlan.Decode(b, &f); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkEncode(b *testing.B) {
	buf := make([]byte, vxlan.Overhead)
	f := vectors[0].want
	b.ReportAllocs()
	for b.Loop() {
		f.Encode(buf)
	}
}

func BenchmarkDecode(b *testing.B) {
	buf := make([]byte, 1450)
	vectors[0].want.Encode(buf)
	var f vxlan.Frame
	b.ReportAllocs()
	for b.Loop() {
		if _, err := vxlan.Decode(buf, &f); err != nil {
			b.Fatal(err)
		}
	}
}
