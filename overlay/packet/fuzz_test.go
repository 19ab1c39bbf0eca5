package packet_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
)

// FuzzParse: whoever sends the bytes, what Parse accepts lies within them, and
// every field is assigned (a dirty header comes out the same). The answers to it
// are packets that parse.
func FuzzParse(f *testing.F) {
	for _, v := range vectors {
		f.Add(packettest.Fix(unhex(f, v.hex)))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		var h packet.Header
		if len(p) >= 20 && int(p[0]&15)*4 <= len(p) {
			packettest.Fix(p) // or next to nothing would get past the checksum
		}
		if packet.Parse(p, &h) != nil {
			return
		}
		dirty := packet.Header{TCPFlags: 0xff, L4Len: 1 << 20, PayloadLen: -1, Ack: 1, ICMPType: 3, HasOptions: true, DontFragment: true}
		if err := packet.Parse(p, &dirty); err != nil || dirty != h {
			t.Errorf("a used header parses differently: %+v, %+v, %v", h, dirty, err)
		}
		if end := h.HeaderLen + h.L4Len + h.PayloadLen; h.PayloadLen < 0 || end > h.TotalLen || h.TotalLen > len(p) {
			t.Errorf("ends at %d, total %d, of %d bytes: %+v", end, h.TotalLen, len(p), h)
		}
		packet.VerifyChecksum(p, &h)
		for _, a := range [][]byte{
			packet.AppendReset(nil, p, &h),
			packet.AppendUnreachable(nil, cell, packet.CodePortUnreachable, p, &h),
			packet.AppendTooBig(nil, cell, 1400, p, &h),
		} {
			if len(a) == 0 {
				continue
			}
			var ah packet.Header
			if err := packet.Parse(a, &ah); err != nil || len(a) > packet.MaxAnswer || !packet.VerifyChecksum(a, &ah) || ah.Dst != h.Src {
				t.Errorf("answer % x: %v", a, err)
			}
		}
	})
}

// FuzzSplit: a container sends any virtio header with any packet. Either Check
// refuses it, or at most MaxFrames packets come out, each inside its room, each
// parsing, with right checksums, and their payloads are the super-packet's.
func FuzzSplit(f *testing.F) {
	seed := func(p []byte, v packet.Virtio) {
		b := make([]byte, packet.VirtioLen)
		v.Encode(b)
		f.Add(append(b, p...))
	}
	p, v := super(packettest.TCP(web, db, packet.FlagACK, 1, 1, randomBytes(250)), packet.GSOTCPv4, 100)
	seed(p, v)
	v.GSOSize = 1
	seed(p, v)
	v.CsumOffset = 60000
	seed(p, v)
	p, v = super(packettest.UDP(web, db, randomBytes(250)), packet.GSOUDPL4, 100)
	seed(p, v)
	p, v = partial(packettest.UDP(web, db, randomBytes(50)))
	seed(p, v)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < packet.VirtioLen {
			return
		}
		var v packet.Virtio
		packet.DecodeVirtio(b, &v)
		p := b[packet.VirtioLen:]
		if len(p) >= 20 && int(p[0]&15)*4 <= len(p) {
			packettest.Fix(p)
		}
		var h packet.Header
		if packet.Parse(p, &h) != nil || v.Check(&h, len(p)) != nil {
			return
		}
		n := packet.Segments(&h, &v)
		if n < 1 || n > packet.MaxFrames {
			t.Fatalf("%d segments", n)
		}
		dst := make([]byte, h.TotalLen)
		headers := h.HeaderLen + h.L4Len
		var payload []byte
		for i := range n {
			got := packet.Split(dst, p, &h, &v, i)
			var sh packet.Header
			if err := packet.Parse(dst[:got], &sh); err != nil || sh.TotalLen != got {
				t.Fatalf("segment %d of %d: %v", i, n, err)
			}
			if v.Flags == packet.VirtioNeedsChecksum && !packet.VerifyChecksum(dst[:got], &sh) {
				t.Fatalf("segment %d: wrong checksum", i)
			}
			payload = append(payload, dst[headers:got]...)
		}
		if !bytes.Equal(payload, p[headers:h.TotalLen]) {
			t.Error("payload differs")
		}
	})
}

// FuzzParseQuoted: a router, or whoever plays one, quotes anything.
func FuzzParseQuoted(f *testing.F) {
	for _, v := range vectors {
		f.Add(packettest.ICMP(cell, web.Addr(), 3, 3, 0, unhex(f, v.hex)))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) >= 20 && int(p[0]&15)*4 <= len(p) {
			packettest.Fix(p)
		}
		var h, q packet.Header
		if packet.Parse(p, &h) != nil {
			return
		}
		err := packet.ParseQuoted(p, &h, &q)
		if (err == nil) && !h.IsICMPError() {
			t.Error("a quote in what is no error")
		}
		if err == nil && (q.PayloadLen < 0 || q.HeaderLen+q.L4Len+q.PayloadLen > q.TotalLen) {
			t.Errorf("impossible lengths: %+v", q)
		}
	})
}

// FuzzCoalesce: peers send any segments and datagrams, of either family. Split again,
// what a Coalescer joined is what came in, per flow and in order. The input is a list
// of changes to packets that would all join; what they are is in size, by fifteen
// hundreds.
func FuzzCoalesce(f *testing.F) {
	for kind := range uint16(4) {
		f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0}, kind*1500+100)
		f.Add([]byte{0, 0, 1, 13, 0, 0, 5, 3}, kind*1500+1400)
		f.Add([]byte{0, 0, 0, 0, 5, 3, 0, 0, 45, 1, 25, 4, 0, 0}, kind*1500+500)
		f.Add(bytes.Repeat([]byte{0}, 20), kind*1500+1)
	}
	c := packet.NewCoalescer()
	c.UDP = true
	f.Fuzz(func(t *testing.T, changes []byte, size uint16) {
		if len(changes) > 60 {
			return
		}
		payload, udp, v6 := int(size)%1500+1, size/1500%2 == 1, size/3000%2 == 1
		src, dst := web, db
		if v6 {
			src, dst = web6, db6
		}
		seq := uint32(0xfffff000)
		var in [][]byte
		for i := 0; i+1 < len(changes); i += 2 {
			p := packettest.TCPSegment{
				Src: src, Dst: dst, Flags: packet.FlagACK, Seq: seq, Ack: 1, Window: 2, ID: uint16(i / 2), NoDF: true,
				Options: timestamps, Payload: make([]byte, payload),
			}.Bytes()
			if udp {
				p = packettest.UDP(src, dst, bytes.Repeat([]byte{byte(i)}, payload))
			}
			seq += uint32(payload)
			// Any one byte of the headers (or the first of the payload) may differ.
			if change := changes[i]; change != 0 {
				p[int(change)%(len(p)-payload+1)] ^= changes[i+1]
				fixBoth(p)
			}
			var h packet.Header
			if packet.Parse(p, &h) == nil {
				in = append(in, p[:h.TotalLen])
			}
		}
		// With DF an identification says nothing, and a datagram split off has the next.
		plain := func(p []byte) []byte {
			if p[0]>>4 == 4 && p[6]&0x40 != 0 && p[9] == packet.ProtoUDP {
				p = bytes.Clone(p)
				p[4], p[5] = 0, 0
				packettest.Fix(p)
			}
			return p
		}
		flow := func(p []byte) string {
			if p[0]>>4 == 6 {
				return string(p[6:7]) + string(p[8:min(44, len(p))])
			}
			if binary.BigEndian.Uint16(p[6:])&0x1fff != 0 {
				return "no ports" // of a fragment's flow nothing is known here
			}
			return string(p[9:10]) + string(p[12:20]) + string(p[20:24])
		}
		want, got := map[string][][]byte{}, map[string][][]byte{}
		for _, p := range in {
			want[flow(p)] = append(want[flow(p)], plain(p))
		}
		c.Reset()
		for _, p := range back(t, coalesce(t, c, clones(in)...)) {
			got[flow(p)] = append(got[flow(p)], plain(p))
		}
		for f := range want {
			samePackets(t, want[f], got[f])
		}
		if len(got) != len(want) {
			t.Errorf("%d flows, want %d", len(got), len(want))
		}
	})
}

// fixBoth writes the checksums of a packet anew, of TCP and UDP without options or
// extension headers.
func fixBoth(p []byte) {
	headers, total, proto, pseudo := 20, int(binary.BigEndian.Uint16(p[2:])), p[9], p[12:20]
	if p[0]>>4 == 6 && len(p) >= 40 {
		headers, total, proto, pseudo = 40, 40+int(binary.BigEndian.Uint16(p[4:])), p[6], p[8:40]
	} else if n := int(p[0]&15) * 4; n >= 20 && n <= len(p) {
		if packettest.Fix(p); n != 20 {
			return
		}
	}
	at, least := headers+16, headers+20
	if proto == packet.ProtoUDP {
		at, least = headers+6, headers+8
	}
	if total = min(total, len(p)); total < least || proto != packet.ProtoTCP && proto != packet.ProtoUDP {
		return
	}
	p[at], p[at+1] = 0, 0
	length := total - headers
	s := ^packettest.Sum(pseudo, []byte{0, proto, byte(length >> 8), byte(length)}, p[headers:total])
	if s == 0 && proto == packet.ProtoUDP {
		s = 0xffff
	}
	p[at], p[at+1] = byte(s>>8), byte(s)
}
