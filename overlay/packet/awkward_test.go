package packet_test

import (
	"bytes"
	"testing"

	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
)

// FuzzFragment: whoever sends it, what a packet is cut into are packets that fit,
// and put together are its payload.
func FuzzFragment(f *testing.F) {
	for _, v := range vectors {
		f.Add(packettest.Fix(unhex(f, v.hex)), uint16(576))
	}
	long := packettest.IPv4{Src: web.Addr(), Dst: db.Addr(), Proto: 17, NoDF: true, Options: []byte{7, 7, 4, 0, 0, 0, 0, 1, 148, 4, 0, 0}, Payload: packettest.UDP(web, db, randomBytes(2000))[20:]}
	f.Add(long.Bytes(), uint16(300))
	f.Fuzz(func(t *testing.T, p []byte, mtu uint16) {
		if len(p) >= 20 && int(p[0]&15)*4 <= len(p) {
			packettest.Fix(p)
		}
		var h packet.Header
		if packet.Parse(p, &h) != nil {
			return
		}
		dst := make([]byte, mtu)
		var all []byte
		for at := 0; at < h.TotalLen-h.HeaderLen; {
			n, next := packet.Fragment(dst, p, &h, int(mtu), at)
			if n == 0 {
				if at != 0 {
					t.Fatalf("no fragment behind byte %d", at)
				}
				return
			}
			var fh packet.Header
			err := packet.Parse(dst[:n], &fh)
			// The first may be too short for its transport's header, as p may be.
			if err != nil && err != packet.ErrTransport && err != packet.ErrFragment {
				t.Fatalf("fragment at %d: %v", at, err)
			}
			if err == nil && (fh.TotalLen != n || n > int(mtu) || fh.ID != h.ID || fh.FragmentOffset != h.FragmentOffset+at ||
				fh.MoreFragments != (h.MoreFragments || next < h.TotalLen-h.HeaderLen)) {
				t.Fatalf("fragment at %d: %+v", at, fh)
			}
			all = append(all, dst[h.HeaderLen:n]...)
			if next <= at {
				t.Fatalf("fragment at %d is followed by one at %d", at, next)
			}
			at = next
		}
		if !bytes.Equal(all, p[h.HeaderLen:h.TotalLen]) {
			t.Error("the payload differs")
		}
	})
}

func TestFragmentKeepsCopiedOptions(t *testing.T) {
	options := []byte{7, 7, 4, 9, 9, 9, 9, 1, 148, 4, 0, 0}
	p := packettest.IPv4{Src: web.Addr(), Dst: db.Addr(), Proto: 17, NoDF: true, Options: options, Payload: make([]byte, 100)}.Bytes()
	h := parse(t, packettest.Fix(udpInto(p)))
	dst := make([]byte, 80)
	n, next := packet.Fragment(dst, p, &h, 80, 0)
	if got := parse(t, dst[:n]); !bytes.Equal(dst[20:32], options) || !got.MoreFragments {
		t.Errorf("the first has options % x", dst[20:32])
	}
	n, _ = packet.Fragment(dst, p, &h, 80, next)
	parse(t, dst[:n])
	if want := []byte{1, 1, 1, 1, 1, 1, 1, 1, 148, 4, 0, 0}; !bytes.Equal(dst[20:32], want) {
		t.Errorf("the second has options % x", dst[20:32])
	}
}

// udpInto makes the payload of p, whose header is 32 bytes, a datagram.
func udpInto(p []byte) []byte {
	copy(p[32:], []byte{0, 1, 0, 2, 0, 100, 0, 0})
	return p
}

func TestClampMSS(t *testing.T) {
	for _, c := range []struct {
		name    string
		options []byte
		flags   uint8
		want    []byte
	}{
		{"too much", []byte{2, 4, 0x05, 0xb4}, packet.FlagSYN, []byte{2, 4, 0x04, 0xb6}},
		{"at an odd place", []byte{1, 2, 4, 0x05, 0xb4, 1, 1, 1}, packet.FlagSYN | packet.FlagACK, []byte{1, 2, 4, 0x04, 0xb6, 1, 1, 1}},
		{"little enough", []byte{2, 4, 0x04, 0x00}, packet.FlagSYN, nil},
		{"no SYN", []byte{2, 4, 0x05, 0xb4}, packet.FlagACK, nil},
		{"nothing announced", []byte{3, 3, 7, 1}, packet.FlagSYN, nil},
		{"behind the end", []byte{0, 0, 0, 0, 2, 4, 0x05, 0xb4}, packet.FlagSYN, nil},
		{"cut off", []byte{1, 1, 2, 4}, packet.FlagSYN, nil},
		{"impossible length", []byte{3, 1, 2, 4, 5, 0xb4, 1, 1}, packet.FlagSYN, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := packettest.TCPSegment{Src: web, Dst: db, Flags: c.flags, Options: c.options}.Bytes()
			h := parse(t, p)
			want := c.want
			if want == nil {
				want = c.options
			}
			if packet.ClampMSS(p, &h, 1246, false) != (c.want != nil) || !bytes.Equal(p[40:], want) {
				t.Errorf("options % x, want % x", p[40:], want)
			}
			if !packet.VerifyChecksum(p, &h) {
				t.Error("the checksum is wrong")
			}
		})
	}
	// A broken segment is not mended.
	p := packettest.TCPSegment{Src: web, Dst: db, Flags: packet.FlagSYN, Options: []byte{2, 4, 5, 0xb4}}.Bytes()
	p[36] ^= 1
	h := parse(t, p)
	if packet.ClampMSS(p, &h, 1246, false) || packet.VerifyChecksum(p, &h) {
		t.Error("a wrong checksum was made right")
	}
}

func TestECNKeepsTheHeaderRight(t *testing.T) {
	for tos := range 256 {
		for outer := range packet.ECN(4) {
			p := packettest.TCPSegment{Src: web, Dst: db, Flags: packet.FlagACK, TOS: uint8(tos)}.Bytes()
			ok := packet.CombineECN(p, outer)
			h := parse(t, p) // the header checksum
			if ok == (outer == packet.CE && tos&3 == 0) || h.TOS&^3 != uint8(tos)&^3 {
				t.Errorf("TOS %#x, outer %d: %t, %#x", tos, outer, ok, h.TOS)
			}
		}
	}
}
