package packet_test

import (
	"net/netip"
	"testing"

	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
)

// A flow's packets have one hash, whatever else they have; flows differ.
func TestFlowHash(t *testing.T) {
	for _, a := range []string{"10.255.1.", "fd00::"} {
		at := func(host string, port uint16) netip.AddrPort {
			return netip.AddrPortFrom(netip.MustParseAddr(a+host), port)
		}
		first := packet.FlowHash(packettest.TCP(at("2", 40000), at("3", 80), packet.FlagSYN, 1, 0, nil))
		if again := packet.FlowHash(packettest.TCP(at("2", 40000), at("3", 80), packet.FlagACK, 99, 7, []byte("more"))); again != first {
			t.Errorf("%s: a flow has %x and %x", a, first, again)
		}
		for name, p := range map[string][]byte{
			"another port":        packettest.TCP(at("2", 40001), at("3", 80), packet.FlagSYN, 1, 0, nil),
			"another destination": packettest.TCP(at("2", 40000), at("4", 80), packet.FlagSYN, 1, 0, nil),
			"another source":      packettest.TCP(at("4", 40000), at("3", 80), packet.FlagSYN, 1, 0, nil),
			"another protocol":    packettest.UDP(at("2", 40000), at("3", 80), nil),
		} {
			if packet.FlowHash(p) == first {
				t.Errorf("%s: %s has the same hash", a, name)
			}
		}
		// Of 4,000 flows each of four ways gets about a quarter.
		var ways [4]int
		for port := range uint16(4000) {
			ways[packet.FlowHash(packettest.UDP(at("2", 30000+port), at("3", 53), nil))%4]++
		}
		for i, n := range ways {
			if n < 800 || n > 1200 {
				t.Errorf("%s: way %d has %d of 4000 flows", a, i, n)
			}
		}
	}
}

// The fragments of a datagram are one flow, though one alone has ports.
func TestFlowHashOfFragments(t *testing.T) {
	src, dst := netip.MustParseAddr("10.255.1.2"), netip.MustParseAddr("10.255.2.3")
	fragment := func(offset uint16, payload string) []byte {
		p := packettest.IPv4{Src: src, Dst: dst, Proto: packet.ProtoUDP, ID: 7, NoDF: true, Payload: []byte(payload)}.Bytes()
		p[6], p[7] = byte(offset>>8), byte(offset)
		return packettest.Fix(p)
	}
	first, later := fragment(0x2000, "\x75\x30\x00\x35\x10\x00\x00\x00"), fragment(1, "not ports")
	if a, b := packet.FlowHash(first), packet.FlowHash(later); a != b {
		t.Errorf("%x and %x", a, b)
	}
}
