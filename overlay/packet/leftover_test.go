package packet_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
)

// leftover is what a Linux host that counts on its card writes into the checksum
// field: the sum of the pseudo header, two bytes at a time, not complemented.
func leftover(p []byte, length int) uint16 {
	sum := uint32(p[9]) + uint32(length)
	for i := 12; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

func TestCompleteLeftover(t *testing.T) {
	src, dst := netip.MustParseAddrPort("10.255.1.1:4000"), netip.MustParseAddrPort("10.255.2.1:8080")
	for name, row := range map[string]struct {
		whole []byte
		field int
	}{
		"tcp":             {packettest.TCP(src, dst, packet.FlagACK, 1, 2, []byte("some bytes, an odd number")), 36},
		"tcp, no payload": {packettest.TCP(src, dst, packet.FlagSYN, 1, 0, nil), 36},
		"udp":             {packettest.UDP(src, dst, []byte("a datagram")), 26},
	} {
		h := parsed(t, row.whole)
		if packet.CompleteLeftover(bytes.Clone(row.whole), &h) {
			t.Errorf("%s: a whole checksum was taken for a leftover", name)
		}
		partial := bytes.Clone(row.whole)
		binary.BigEndian.PutUint16(partial[row.field:], leftover(partial, len(partial)-20))
		if !packet.CompleteLeftover(partial, &h) || !bytes.Equal(partial, row.whole) {
			t.Errorf("%s: completed\n%x, want\n%x", name, partial, row.whole)
		}
		wrong := bytes.Clone(row.whole)
		wrong[row.field] ^= 0x55
		if packet.CompleteLeftover(wrong, &h) {
			t.Errorf("%s: a wrong checksum was made right", name)
		}
	}
	first := packettest.IPv4{Src: src.Addr(), Dst: dst.Addr(), Proto: packet.ProtoUDP, MoreFragments: true,
		Payload: packettest.UDP(src, dst, make([]byte, 56))[20:]}.Bytes()
	h := parsed(t, first)
	if packet.CompleteLeftover(first, &h) {
		t.Error("a fragment holds no checksum of its own")
	}
}

func parsed(t *testing.T, p []byte) packet.Header {
	t.Helper()
	var h packet.Header
	if err := packet.Parse(p, &h); err != nil {
		t.Fatal(err)
	}
	return h
}
