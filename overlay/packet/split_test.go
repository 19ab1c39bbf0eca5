package packet_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
)

var timestamps = []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}

func randomBytes(n int) []byte {
	r := rand.New(rand.NewPCG(uint64(n), 7))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// partial makes p what a stack hands to a device that completes checksums: the
// pseudo header's sum stands in the field.
func partial(p []byte) ([]byte, packet.Virtio) {
	p = bytes.Clone(p)
	if p[0]>>4 == 6 {
		return partial6(p)
	}
	n := int(p[0]&15) * 4
	v := packet.Virtio{Flags: packet.VirtioNeedsChecksum, CsumStart: uint16(n), CsumOffset: 16}
	if p[9] == packet.ProtoUDP {
		v.CsumOffset = 6
	}
	length := len(p) - n
	s := packettest.Sum(p[12:20], []byte{0, p[9], byte(length >> 8), byte(length)})
	p[n+int(v.CsumOffset)], p[n+int(v.CsumOffset)+1] = byte(s>>8), byte(s)
	return p, v
}

// super makes p a super-packet as Linux hands it over.
func super(p []byte, gsoType uint8, size int) ([]byte, packet.Virtio) {
	p, v := partial(p)
	v.GSOType, v.GSOSize, v.HdrLen = gsoType, uint16(size), uint16(min(len(p), 1460))
	return p, v
}

func split(t testing.TB, p []byte, v packet.Virtio) [][]byte {
	t.Helper()
	h := parse(t, p)
	if err := v.Check(&h, len(p)); err != nil {
		t.Fatalf("check: %v", err)
	}
	before := bytes.Clone(p)
	var out [][]byte
	for i := range packet.Segments(&h, &v) {
		room := h.TotalLen
		if v.GSOType != packet.GSONone {
			room = min(room, h.HeaderLen+h.L4Len+int(v.GSOSize))
		}
		dst := bytes.Repeat([]byte{0xaa}, room+8)
		n := packet.Split(dst[:room], p, &h, &v, i)
		if !bytes.Equal(dst[n:n+8], bytes.Repeat([]byte{0xaa}, 8)) {
			t.Fatalf("segment %d wrote behind its %d bytes", i, n)
		}
		out = append(out, dst[:n])
	}
	if !bytes.Equal(p, before) {
		t.Fatal("split changed its input")
	}
	return out
}

func TestSplitTCP(t *testing.T) {
	payload := randomBytes(5000)
	whole := packettest.TCPSegment{
		Src: web, Dst: db, Seq: 0xfffffc00, Ack: 77, Window: 1000, ID: 0xffff, TOS: 2, TTL: 63, Options: timestamps,
		Flags:   packet.FlagACK | packet.FlagPSH | packet.FlagFIN | packet.FlagCWR | packet.FlagECE,
		Payload: payload,
	}
	p, v := super(whole.Bytes(), packet.GSOTCPv4|0x80, 1398)
	var want [][]byte
	for i, from := 0, 0; from < len(payload); i, from = i+1, from+1398 {
		s := whole
		s.Seq += uint32(from)
		s.ID += uint16(i)
		s.Payload = payload[from:min(from+1398, len(payload))]
		if from > 0 {
			s.Flags &^= packet.FlagCWR
		}
		if from+1398 < len(payload) {
			s.Flags &^= packet.FlagFIN | packet.FlagPSH
		}
		want = append(want, s.Bytes())
	}
	if d := cmp.Diff(want, split(t, p, v)); d != "" {
		t.Errorf("segments differ (-want +got):\n%s", d)
	}
}

// A path smaller than the container's gets smaller segments of the same stream.
func TestSplitSmaller(t *testing.T) {
	payload := randomBytes(9000)
	p, v := super(packettest.TCP(web, db, packet.FlagACK, 5, 6, payload), packet.GSOTCPv4, 1400)
	v.GSOSize = 1000
	var got []byte
	for _, s := range split(t, p, v) {
		got = append(got, s[40:]...)
	}
	if !bytes.Equal(got, payload) {
		t.Error("the stream differs")
	}
}

func TestSplitUDP(t *testing.T) {
	payload := randomBytes(3000)
	p, v := super(packettest.UDP(web, db, payload), packet.GSOUDPL4, 1200)
	var want [][]byte
	for i, part := range [][]byte{payload[:1200], payload[1200:2400], payload[2400:]} {
		s := packettest.UDP(web, db, part)
		s[5] = byte(i)
		want = append(want, packettest.Fix(s))
	}
	if d := cmp.Diff(want, split(t, p, v)); d != "" {
		t.Errorf("datagrams differ (-want +got):\n%s", d)
	}
}

// A UDP checksum that comes out as 0 is sent as 0xffff.
func TestSplitUDPChecksumZero(t *testing.T) {
	p := packettest.UDP(web, db, []byte{0, 0})
	zero := ^packettest.Sum([]byte{p[26], p[27]})
	p = packettest.UDP(web, db, []byte{^byte(zero >> 8), ^byte(zero)})
	if p[26] != 0xff || p[27] != 0xff {
		t.Fatalf("checksum is % x, the vector is meant to sum to 0", p[26:28])
	}
	q, v := partial(p)
	if got := split(t, q, v); !bytes.Equal(got[0], p) {
		t.Errorf("got % x, want % x", got[0], p)
	}
}

func TestSplitPlain(t *testing.T) {
	for _, p := range [][]byte{
		packettest.TCP(web, db, packet.FlagACK, 1, 2, []byte("hello")),
		packettest.UDP(web, db, []byte("hello")),
	} {
		if got := split(t, p, packet.Virtio{}); !bytes.Equal(got[0], p) {
			t.Errorf("plain packet changed: % x", got[0])
		}
		q, v := partial(p)
		if got := split(t, q, v); !bytes.Equal(got[0], p) {
			t.Errorf("checksum not completed: % x, want % x", got[0], p)
		}
	}
}

func TestVirtioBytes(t *testing.T) {
	v := packet.Virtio{Flags: 1, GSOType: 0x81, HdrLen: 0x0234, GSOSize: 0x0578, CsumStart: 20, CsumOffset: 16}
	b := make([]byte, packet.VirtioLen)
	v.Encode(b)
	var got packet.Virtio
	packet.DecodeVirtio(b, &got)
	if got != v || b[0] != 1 || b[1] != 0x81 {
		t.Errorf("% x decodes to %+v, want %+v", b, got, v)
	}
}

func TestCheck(t *testing.T) {
	tcp := packettest.TCP(web, db, packet.FlagACK, 1, 1, randomBytes(60000))
	syn := packettest.TCP(web, db, packet.FlagSYN, 1, 1, randomBytes(3000))
	udp := packettest.UDP(web, db, randomBytes(60000))
	echo := packettest.ICMP(web.Addr(), db.Addr(), 8, 0, 0, randomBytes(60))
	fragment := packettest.IPv4{Src: web.Addr(), Dst: db.Addr(), Proto: 17, MoreFragments: true, Payload: udp[20:1420]}.Bytes()
	trailing := append(bytes.Clone(udp), 1, 2)
	shortUDP := bytes.Clone(udp)
	shortUDP[24], shortUDP[25] = 0, 100

	need := func(start, offset uint16) packet.Virtio {
		return packet.Virtio{Flags: packet.VirtioNeedsChecksum, CsumStart: start, CsumOffset: offset}
	}
	gso := func(v packet.Virtio, typ uint8, size, hdr uint16) packet.Virtio {
		v.GSOType, v.GSOSize, v.HdrLen = typ, size, hdr
		return v
	}
	for _, c := range []struct {
		name string
		p    []byte
		v    packet.Virtio
		want error
	}{
		{"plain TCP", tcp, packet.Virtio{}, nil},
		{"plain echo", echo, packet.Virtio{}, nil},
		{"plain fragment", fragment, packet.Virtio{}, nil},
		{"bytes behind a plain packet", trailing, packet.Virtio{}, nil},
		{"verified by the sender's stack", tcp, packet.Virtio{Flags: packet.VirtioDataValid}, nil},
		{"partial TCP", tcp, need(20, 16), nil},
		{"partial UDP", udp, need(20, 6), nil},
		{"TSO", tcp, gso(need(20, 16), packet.GSOTCPv4, 1400, 40), nil},
		{"TSO, header length is the linear part's", tcp, gso(need(20, 16), packet.GSOTCPv4, 1400, 5000), nil},
		{"TSO with ECN", tcp, gso(need(20, 16), packet.GSOTCPv4|0x80, 1400, 40), nil},
		{"TSO of one segment", syn, gso(need(20, 16), packet.GSOTCPv4, 3000, 40), nil},
		{"USO", udp, gso(need(20, 6), packet.GSOUDPL4, 1400, 28), nil},
		{"as many frames as there may be", tcp, gso(need(20, 16), packet.GSOTCPv4, 938, 40), nil},

		{"one frame more", tcp, gso(need(20, 16), packet.GSOTCPv4, 937, 40), packet.ErrVirtioFrames},
		{"segments of one byte", tcp, gso(need(20, 16), packet.GSOTCPv4, 1, 40), packet.ErrVirtioFrames},
		{"segments of nothing", tcp, gso(need(20, 16), packet.GSOTCPv4, 0, 40), packet.ErrVirtioLength},
		{"the kernel's own mark as size", tcp, gso(need(20, 16), packet.GSOTCPv4, 0xffff, 40), packet.ErrVirtioLength},
		{"header length behind the packet", echo, packet.Virtio{HdrLen: 89}, packet.ErrVirtioLength},
		{"TSO without partial checksum", tcp, gso(packet.Virtio{}, packet.GSOTCPv4, 1400, 40), packet.ErrVirtioChecksum},
		{"TSO of UDP", udp, gso(need(20, 6), packet.GSOTCPv4, 1400, 28), packet.ErrVirtioType},
		{"USO of TCP", tcp, gso(need(20, 16), packet.GSOUDPL4, 1400, 40), packet.ErrVirtioType},
		{"USO with ECN", udp, gso(need(20, 6), packet.GSOUDPL4|0x80, 1400, 28), packet.ErrVirtioType},
		{"fragmentation offload", udp, gso(need(20, 6), 3, 1400, 28), packet.ErrVirtioType},
		{"TSO for IPv6", tcp, gso(need(20, 16), 4, 1400, 40), packet.ErrVirtioType},
		{"size without a type", tcp, gso(need(20, 16), packet.GSONone, 1400, 40), packet.ErrVirtioType},
		{"several SYNs", syn, gso(need(20, 16), packet.GSOTCPv4, 1400, 40), packet.ErrVirtioType},
		{"checksum range begins in the IP header", tcp, need(12, 16), packet.ErrVirtioChecksum},
		{"checksum range begins behind the packet", tcp, need(65000, 16), packet.ErrVirtioChecksum},
		{"checksum field over the ports", tcp, need(20, 0), packet.ErrVirtioChecksum},
		{"checksum field behind the packet", tcp, need(20, 65000), packet.ErrVirtioChecksum},
		{"UDP's field in TCP", tcp, need(20, 6), packet.ErrVirtioChecksum},
		{"partial echo", echo, need(20, 2), packet.ErrVirtioChecksum},
		{"partial fragment", fragment, need(20, 6), packet.ErrVirtioChecksum},
		{"bytes behind a partial checksum's packet", trailing, need(20, 6), packet.ErrVirtioLength},
		{"UDP shorter than its packet", shortUDP, need(20, 6), packet.ErrVirtioLength},
		{"unknown flag", tcp, packet.Virtio{Flags: 4}, packet.ErrVirtioFlags},
		{"partial and verified", tcp, packet.Virtio{Flags: 3, CsumStart: 20, CsumOffset: 16}, packet.ErrVirtioFlags},
	} {
		h := parse(t, c.p)
		if err := c.v.Check(&h, len(c.p)); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
}

func TestVerifyChecksum(t *testing.T) {
	noUDP := packettest.UDP(web, db, []byte("odd"))
	noUDP[26], noUDP[27] = 0, 0
	for name, p := range map[string][]byte{
		"TCP":  packettest.TCP(web, db, packet.FlagACK, 1, 2, []byte("odd")),
		"UDP":  packettest.UDP(web, db, []byte("odd")),
		"echo": packettest.ICMP(web.Addr(), db.Addr(), 8, 0, 9, []byte("odd")),
	} {
		h := parse(t, p)
		if !packet.VerifyChecksum(p, &h) {
			t.Errorf("%s: a right checksum is called wrong", name)
		}
		for i := int(h.HeaderLen); i < len(p); i++ {
			p[i] ^= 0x40
			if packet.VerifyChecksum(p, &h) {
				t.Errorf("%s: byte %d changed and nobody noticed", name, i)
			}
			p[i] ^= 0x40
		}
	}
	h := parse(t, noUDP)
	if !packet.VerifyChecksum(noUDP, &h) {
		t.Error("UDP without a checksum is called wrong")
	}
}
