package packet_test

import (
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
)

var (
	web = netip.MustParseAddrPort("10.255.1.2:40000")
	db  = netip.MustParseAddrPort("10.255.2.3:5432")
)

var compareAddrs = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

// unhex reads bytes written with spaces at field borders.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func parse(t testing.TB, p []byte) packet.Header {
	t.Helper()
	var h packet.Header
	if err := packet.Parse(p, &h); err != nil {
		t.Fatalf("parse % x: %v", p[:min(len(p), 60)], err)
	}
	return h
}

// vectors are packets as Linux sends them, and what they say.
var vectors = []struct {
	name, hex string
	want      packet.Header
}{
	{
		"SYN of a connect, MSS 1410, SACK, timestamps, window scale",
		"45 00 003c 1c46 4000 40 06 06 6f 0aff0102 0aff0203" +
			"9c40 1538 00000064 00000000 a0 02 fc18 0000 0000 0204 0582 0402 080a 00000001 00000000 01 0303 07",
		packet.Header{
			Src: web.Addr(), Dst: db.Addr(), Proto: packet.ProtoTCP, TTL: 64, ID: 0x1c46,
			HeaderLen: 20, TotalLen: 60, DontFragment: true,
			SrcPort: 40000, DstPort: 5432, TCPFlags: packet.FlagSYN, Seq: 100, Window: 0xfc18, L4Len: 40,
		},
	},
	{
		"data, push",
		"45 02 002c 0001 4000 3f 06 22c2 0aff0102 0aff0203" +
			"9c40 1538 ffffffff 00000007 50 18 01f6 0000 0000 61626364",
		packet.Header{
			Src: web.Addr(), Dst: db.Addr(), Proto: packet.ProtoTCP, TTL: 63, TOS: 2, ID: 1,
			HeaderLen: 20, TotalLen: 44, DontFragment: true,
			SrcPort: 40000, DstPort: 5432, TCPFlags: packet.FlagACK | packet.FlagPSH, Seq: 0xffffffff, Ack: 7, Window: 502,
			L4Len: 20, PayloadLen: 4,
		},
	},
	{
		"DNS question",
		"45 00 0020 abcd 0000 40 11 b7e8 0aff0102 0aff0203 8000 0035 000c 0000 00010203",
		packet.Header{
			Src: web.Addr(), Dst: db.Addr(), Proto: packet.ProtoUDP, TTL: 64, ID: 0xabcd,
			HeaderLen: 20, TotalLen: 32, SrcPort: 32768, DstPort: 53, L4Len: 8, PayloadLen: 4,
		},
	},
	{
		"echo request",
		"45 00 001e 0000 4000 40 01 23c8 0aff0102 0aff0203 08 00 0000 0001 0001 abcd",
		packet.Header{
			Src: web.Addr(), Dst: db.Addr(), Proto: packet.ProtoICMP, TTL: 64,
			HeaderLen: 20, TotalLen: 30, DontFragment: true, ICMPType: 8, L4Len: 8, PayloadLen: 2,
		},
	},
	{
		"router alert option, IGMP",
		"46 c0 0020 0000 4000 01 02 47cb 0aff0102 e0000016 94040000 2200f9fd 00000001",
		packet.Header{
			Src: web.Addr(), Dst: netip.MustParseAddr("224.0.0.22"), Proto: 2, TTL: 1, TOS: 0xc0,
			HeaderLen: 24, TotalLen: 32, HasOptions: true, DontFragment: true, PayloadLen: 8,
		},
	},
	{
		"later fragment of UDP",
		"45 00 001c 1234 2003 40 11 315a 0aff0102 0aff0203 0102030405060708",
		packet.Header{
			Src: web.Addr(), Dst: db.Addr(), Proto: packet.ProtoUDP, TTL: 64, ID: 0x1234,
			HeaderLen: 20, TotalLen: 28, MoreFragments: true, FragmentOffset: 24, PayloadLen: 8,
		},
	},
}

func TestParse(t *testing.T) {
	for _, v := range vectors {
		t.Run(v.name, func(t *testing.T) {
			p := packettest.Fix(unhex(t, v.hex))
			// A reused header keeps nothing of the packet before.
			h := packet.Header{TCPFlags: 0xff, SrcPort: 9, L4Len: 60, MoreFragments: true, FragmentOffset: 8, HasOptions: true, ICMPType: 3, Ack: 5}
			if err := packet.Parse(append(p, 0xff, 0xff), &h); err != nil {
				t.Fatal(err)
			}
			v.want.PartLen = v.want.TotalLen - v.want.HeaderLen
			if d := cmp.Diff(v.want, h, compareAddrs); d != "" {
				t.Errorf("header differs (-want +got):\n%s", d)
			}
			for n := range p {
				if err := packet.Parse(p[:n], &h); err == nil {
					t.Errorf("the first %d of %d bytes were accepted", n, len(p))
				}
			}
		})
	}
}

func TestParseVerifiesTheHeaderChecksum(t *testing.T) {
	p := unhex(t, "45 00 0073 0000 4000 40 11 b861 c0a80001 c0a800c7") // a well-known example
	p = append(p, make([]byte, 95)...)
	p[24], p[25] = 0, 95
	var h packet.Header
	if err := packet.Parse(p, &h); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		p[i] ^= 0x01
		if err := packet.Parse(p, &h); err == nil {
			t.Errorf("flipped bit in byte %d was accepted", i)
		}
		p[i] ^= 0x01
	}
}

func TestParseRefuses(t *testing.T) {
	tcp := packettest.TCP(web, db, packet.FlagACK, 1, 1, []byte("data"))
	udp := packettest.UDP(web, db, []byte("data"))
	echo := packettest.ICMP(web.Addr(), db.Addr(), 8, 0, 0, nil)
	change := func(p []byte, at int, values ...byte) []byte {
		p = append([]byte(nil), p...)
		copy(p[at:], values)
		if n := int(p[0]&15) * 4; n >= 20 && n <= len(p) {
			packettest.Fix(p)
		}
		return p
	}
	for _, c := range []struct {
		name string
		p    []byte
		want error
	}{
		{"nothing", nil, packet.ErrShort},
		{"IP version 5", change(tcp, 0, 0x50), packet.ErrVersion},
		{"header of 16 bytes", change(tcp, 0, 0x44), packet.ErrHeaderLength},
		{"header longer than the packet", change(tcp, 0, 0x4f), packet.ErrHeaderLength},
		{"total length below the header's", change(tcp, 2, 0, 19), packet.ErrLength},
		{"total length above the packet's", change(tcp, 2, 0, 45), packet.ErrLength},
		{"total length 0, as of a jumbo", change(tcp, 2, 0, 0), packet.ErrLength},
		{"TCP without a whole header", change(tcp, 2, 0, 39), packet.ErrTransport},
		{"TCP data offset 4 words", change(tcp, 32, 0x40), packet.ErrTransport},
		{"TCP data offset behind the end", change(tcp, 32, 0xf0), packet.ErrTransport},
		{"UDP without a whole header", change(udp, 2, 0, 27), packet.ErrTransport},
		{"UDP length below its header's", change(udp, 24, 0, 7), packet.ErrTransport},
		{"UDP length above the packet's", change(udp, 24, 0, 13), packet.ErrTransport},
		{"ICMP without a whole header", change(echo, 2, 0, 27), packet.ErrTransport},
		{"first fragment that ends in the TCP header", packettest.IPv4{Src: web.Addr(), Dst: db.Addr(), Proto: 6, MoreFragments: true, Payload: make([]byte, 16)}.Bytes(), packet.ErrTransport},
		{"second fragment over the TCP flags", packettest.IPv4{Src: web.Addr(), Dst: db.Addr(), Proto: 6, Offset: 8, Payload: make([]byte, 16)}.Bytes(), packet.ErrFragment},
		{"ping of death", packettest.IPv4{Src: web.Addr(), Dst: db.Addr(), Proto: 1, Offset: 65528, Payload: make([]byte, 16)}.Bytes(), packet.ErrLength},
	} {
		var h packet.Header
		if err := packet.Parse(c.p, &h); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
}

func TestFirstFragmentOfUDP(t *testing.T) {
	l4 := make([]byte, 24)
	copy(l4, unhex(t, "9c40 1538 0fa8 0000")) // 4,008 bytes long as a whole
	h := parse(t, packettest.IPv4{Src: web.Addr(), Dst: db.Addr(), Proto: 17, MoreFragments: true, Payload: l4}.Bytes())
	if h.DstPort != 5432 || h.PayloadLen != 16 || !h.IsFragment() {
		t.Errorf("got port %d, payload %d, fragment %v", h.DstPort, h.PayloadLen, h.IsFragment())
	}
}

func TestDecrementTTL(t *testing.T) {
	// Every TTL beside several sums, among them those where the complement wraps.
	for id := range 1 << 16 {
		ttl := uint8(id>>8) ^ uint8(id)
		p := packettest.IPv4{Src: web.Addr(), Dst: db.Addr(), Proto: 17, ID: uint16(id), TTL: max(ttl, 1)}.Bytes()
		before := p[8]
		switch ok := packet.DecrementTTL(p); {
		case ok != (before > 1):
			t.Fatalf("TTL %d: got %v", before, ok)
		case ok && (p[8] != before-1 || packettest.Sum(p[:20]) != 0xffff):
			t.Fatalf("TTL %d, id %#x: now %d, sum %#x", before, id, p[8], packettest.Sum(p[:20]))
		case !ok && p[8] != before:
			t.Fatalf("TTL %d changed to %d", before, p[8])
		}
	}
}
