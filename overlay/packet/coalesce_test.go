package packet_test

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
)

// written is one write to a device: a virtio header and a packet.
type written struct {
	v packet.Virtio
	p []byte
}

// coalesce runs packets through c as a receive batch does.
func coalesce(t testing.TB, c *packet.Coalescer, packets ...[]byte) []written {
	t.Helper()
	var out []written
	write := func() {
		for g := range c.Len() {
			b := slices.Concat(c.Pieces(g)...)
			var w written
			packet.DecodeVirtio(b, &w.v)
			w.p = b[packet.VirtioLen:]
			out = append(out, w)
		}
		c.Reset()
	}
	for _, p := range packets {
		h := parse(t, p)
		g, joined := c.Add(p, &h)
		if g == packet.Full {
			write()
			if g, joined = c.Add(p, &h); g == packet.Full {
				t.Fatal("full after a reset")
			}
		}
		if !joined && g != c.Len()-1 {
			t.Fatalf("new group has number %d of %d", g, c.Len())
		}
	}
	write()
	return out
}

// back splits what was written into packets of the wire again.
func back(t testing.TB, ws []written) [][]byte {
	t.Helper()
	var out [][]byte
	for _, w := range ws {
		out = append(out, split(t, w.p, w.v)...)
	}
	return out
}

// samePackets compares packets byte by byte.
func samePackets(t testing.TB, want, got [][]byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%d packets, want %d", len(got), len(want))
	}
	for i := range min(len(got), len(want)) {
		if !bytes.Equal(got[i], want[i]) {
			t.Errorf("packet %d differs (-want +got):\n%s", i, cmp.Diff(want[i], got[i]))
			return
		}
	}
}

func clones(ps [][]byte) [][]byte {
	out := make([][]byte, len(ps))
	for i, p := range ps {
		out[i] = bytes.Clone(p)
	}
	return out
}

// stream cuts payload into segments as a sender's stack does.
func stream(src, dst netip.AddrPort, seq uint32, payload []byte, size int) [][]byte {
	var out [][]byte
	for i := 0; len(payload) > 0; i++ {
		n := min(size, len(payload))
		s := packettest.TCPSegment{
			Src: src, Dst: dst, Flags: packet.FlagACK, Seq: seq, Ack: 9, Window: 512, ID: uint16(i), TTL: 63,
			Options: timestamps, Payload: payload[:n],
		}
		if n == len(payload) {
			s.Flags |= packet.FlagPSH
		}
		out = append(out, s.Bytes())
		payload, seq = payload[n:], seq+uint32(n)
	}
	return out
}

func TestCoalesceTCP(t *testing.T) {
	payload := randomBytes(30000)
	segments := stream(web, db, 0xffffff00, payload, 1398)
	ws := coalesce(t, packet.NewCoalescer(), clones(segments)...)
	if len(ws) != 1 {
		t.Fatalf("%d writes, want 1", len(ws))
	}
	want := packet.Virtio{Flags: packet.VirtioNeedsChecksum, GSOType: packet.GSOTCPv4, HdrLen: 52, GSOSize: 1398, CsumStart: 20, CsumOffset: 16}
	if ws[0].v != want {
		t.Errorf("virtio header is %+v, want %+v", ws[0].v, want)
	}
	if h := parse(t, ws[0].p); h.PayloadLen != 30000 || h.TCPFlags != packet.FlagACK|packet.FlagPSH {
		t.Errorf("payload %d, flags %#x", h.PayloadLen, h.TCPFlags)
	}
	if !bytes.Equal(ws[0].p[52:], payload) {
		t.Error("payload differs")
	}
	samePackets(t, segments, back(t, ws))
}

// Flows that share a receive batch do not keep each other from joining.
func TestCoalesceInterleaved(t *testing.T) {
	const flows, each = 20, 12
	var batch [][]byte
	for i := range each {
		for f := range flows {
			src := netip.AddrPortFrom(web.Addr(), uint16(1000+f))
			batch = append(batch, stream(src, db, 5, bytes.Repeat([]byte{byte(f)}, 1000*each), 1000)[i])
		}
	}
	ws := coalesce(t, packet.NewCoalescer(), batch...)
	// Two of the flows may hash to one place, which costs joins, not packets.
	if len(ws) > 4*flows {
		t.Errorf("%d flows of %d segments are %d writes", flows, each, len(ws))
	}
	got := map[uint16]int{}
	for _, w := range ws {
		h := parse(t, w.p)
		got[h.SrcPort] += h.PayloadLen
		for _, b := range w.p[52:] {
			if b != byte(h.SrcPort-1000) {
				t.Fatalf("flow %d holds another's byte", h.SrcPort-1000)
			}
		}
	}
	for f := range flows {
		if got[uint16(1000+f)] != 1000*each {
			t.Errorf("flow %d has %d bytes", f, got[uint16(1000+f)])
		}
	}
}

// What must not be joined: a second segment that differs from the first's
// successor in one thing. Both come out as they went in.
func TestCoalesceKeepsApart(t *testing.T) {
	first := packettest.TCPSegment{
		Src: web, Dst: db, Flags: packet.FlagACK, Seq: 100, Ack: 9, Window: 512, ID: 7, TTL: 63, NoDF: true,
		Options: timestamps, Payload: randomBytes(1000),
	}
	next := func(change func(s *packettest.TCPSegment)) packettest.TCPSegment {
		s := first
		s.Seq, s.ID = 1100, 8
		s.Options = bytes.Clone(timestamps)
		change(&s)
		return s
	}
	type segment = packettest.TCPSegment
	for _, c := range []struct {
		name   string
		change func(s *segment)
		after  func(p []byte)
	}{
		{"other source port", func(s *segment) { s.Src = netip.AddrPortFrom(web.Addr(), 1) }, nil},
		{"other destination", func(s *segment) { s.Dst = netip.MustParseAddrPort("10.255.2.4:5432") }, nil},
		{"gap", func(s *segment) { s.Seq++ }, nil},
		{"overlap", func(s *segment) { s.Seq-- }, nil},
		{"longer payload", func(s *segment) { s.Payload = randomBytes(1001) }, nil},
		{"no payload", func(s *segment) { s.Payload = nil }, nil},
		{"other acknowledgement", func(s *segment) { s.Ack++ }, nil},
		{"other window", func(s *segment) { s.Window++ }, nil},
		{"other timestamp", func(s *segment) { s.Options[7]++ }, nil},
		{"other options' length", func(s *segment) { s.Options = append(s.Options, 1, 1, 1, 1) }, nil},
		{"no options", func(s *segment) { s.Options = nil }, nil},
		{"other TOS", func(s *segment) { s.TOS = 3 }, nil},
		{"other TTL", func(s *segment) { s.TTL = 62 }, nil},
		{"DF", func(s *segment) { s.NoDF = false }, nil},
		{"identification not in a row", func(s *segment) { s.ID++ }, nil},
		{"FIN", func(s *segment) { s.Flags |= packet.FlagFIN }, nil},
		{"SYN", func(s *segment) { s.Flags |= packet.FlagSYN }, nil},
		{"RST", func(s *segment) { s.Flags |= packet.FlagRST }, nil},
		{"URG", func(s *segment) { s.Flags |= packet.FlagURG }, nil},
		{"ECE", func(s *segment) { s.Flags |= packet.FlagECE }, nil},
		{"CWR", func(s *segment) { s.Flags |= packet.FlagCWR }, nil},
		{"no ACK", func(s *segment) { s.Flags = 0 }, nil},
		{"a wrong checksum", func(*segment) {}, func(p []byte) { p[len(p)-1] ^= 1 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			second := next(c.change).Bytes()
			if c.after != nil {
				c.after(second)
			}
			in := [][]byte{first.Bytes(), second}
			for _, order := range [][][]byte{in, {in[1], in[0]}} {
				ws := coalesce(t, packet.NewCoalescer(), clones(order)...)
				if len(ws) != 2 {
					t.Fatalf("%d writes, want 2", len(ws))
				}
				for i, w := range ws {
					if w.v != (packet.Virtio{}) || !bytes.Equal(w.p, order[i]) {
						t.Errorf("packet %d changed: %+v", i, w.v)
					}
				}
			}
		})
	}
	t.Run("nothing of these", func(t *testing.T) {
		if ws := coalesce(t, packet.NewCoalescer(), first.Bytes(), next(func(*segment) {}).Bytes()); len(ws) != 1 {
			t.Errorf("%d writes, want 1: the rows above show nothing", len(ws))
		}
	})
}

// A packet that is not joined still keeps its place among its flow's packets.
func TestCoalesceKeepsOrder(t *testing.T) {
	s := stream(web, db, 1, randomBytes(6000), 1000)
	pure := packettest.TCPSegment{Src: web, Dst: db, Flags: packet.FlagACK, Seq: 3001, Ack: 10, Window: 512, TTL: 63, Options: timestamps}.Bytes()
	bad := bytes.Clone(s[4])
	bad[60] ^= 1
	in := [][]byte{s[0], s[1], s[2], pure, s[3], bad, s[4], s[5]}
	ws := coalesce(t, packet.NewCoalescer(), clones(in)...)
	samePackets(t, in, back(t, ws))
	if len(ws) != 5 { // 012, pure, 3, bad, 45
		t.Errorf("%d writes, want 5", len(ws))
	}
}

// A short segment and one with PSH end a super-packet.
func TestCoalesceEnds(t *testing.T) {
	s := stream(web, db, 1, randomBytes(2500), 1000)
	more := stream(web, db, 2501, randomBytes(2000), 1000)
	ws := coalesce(t, packet.NewCoalescer(), clones(append(s, more...))...)
	if len(ws) != 2 {
		t.Fatalf("%d writes, want 2", len(ws))
	}
	samePackets(t, append(clones(s), more...), back(t, ws))
}

func TestCoalesceNeverExceedsAPacket(t *testing.T) {
	for _, size := range []int{100, 1000, 1448, 8000, 32000} {
		s := stream(web, db, 1, randomBytes(300000), size)
		ws := coalesce(t, packet.NewCoalescer(), clones(s)...)
		samePackets(t, s, back(t, ws))
		fit := min(packet.MaxFrames, (65535-52)/size)
		if want := (len(s) + fit - 1) / fit; len(ws) > want+1+len(s)/1000 {
			t.Errorf("size %d: %d segments are %d writes, want about %d", size, len(s), len(ws), want)
		}
	}
}

func TestCoalesceUDP(t *testing.T) {
	var in [][]byte
	for i, n := range []int{1200, 1200, 1200, 300, 1200, 1200} {
		p := packettest.UDP(web, db, randomBytes(n))
		p[5] = byte(i)
		in = append(in, packettest.Fix(p))
	}
	noSum := packettest.UDP(web, db, randomBytes(1200))
	noSum[26], noSum[27] = 0, 0
	in = append(in, noSum)
	on, off := packet.NewCoalescer(), packet.NewCoalescer()
	on.UDP = true
	ws := coalesce(t, on, clones(in)...)
	if len(ws) != 3 {
		t.Fatalf("%d writes, want 3", len(ws))
	}
	if ws[0].v.GSOType != packet.GSOUDPL4 || ws[0].v.GSOSize != 1200 || ws[0].v.CsumOffset != 6 {
		t.Errorf("virtio header is %+v", ws[0].v)
	}
	got := back(t, ws)
	got[5][5] = 5 // identifications count within a super-packet; DF makes them meaningless
	packettest.Fix(got[5])
	samePackets(t, in, got)
	if ws := coalesce(t, off, clones(in)...); len(ws) != len(in) {
		t.Errorf("without UDP: %d writes, want %d", len(ws), len(in))
	}
}

// Other protocols, options and fragments pass as they are.
func TestCoalesceLeavesTheRest(t *testing.T) {
	var in [][]byte
	for range 2 {
		in = append(in,
			packettest.ICMP(web.Addr(), db.Addr(), 8, 0, 1, randomBytes(100)),
			packettest.IPv4{Src: web.Addr(), Dst: db.Addr(), Proto: 17, Offset: 800, Payload: randomBytes(100)}.Bytes(),
			packettest.IPv4{Src: web.Addr(), Dst: db.Addr(), Proto: 17, MoreFragments: true, Payload: packettest.UDP(web, db, randomBytes(800))[20:]}.Bytes(),
			packettest.IPv4{Src: web.Addr(), Dst: db.Addr(), Proto: 6, Options: []byte{1, 1, 1, 0}, Payload: packettest.TCP(web, db, packet.FlagACK, 1, 1, []byte("x"))[20:]}.Bytes(),
		)
	}
	c := packet.NewCoalescer()
	c.UDP = true
	ws := coalesce(t, c, clones(in)...)
	if len(ws) != len(in) {
		t.Fatalf("%d writes, want %d", len(ws), len(in))
	}
	for i, w := range ws {
		if w.v != (packet.Virtio{}) || !bytes.Equal(w.p, in[i]) {
			t.Errorf("packet %d changed", i)
		}
	}
}

// Random batches of many flows, with losses, repeats and damage: each flow's
// packets come out as they went in, in their order.
func TestCoalesceRandom(t *testing.T) {
	c := packet.NewCoalescer()
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 3))
		var flows [][][]byte
		for f := range 1 + r.IntN(100) {
			src := netip.AddrPortFrom(web.Addr(), uint16(f))
			flows = append(flows, stream(src, db, r.Uint32(), randomBytes(r.IntN(20000)), 200+r.IntN(1200)))
		}
		var in [][]byte
		for range 600 {
			f := &flows[r.IntN(len(flows))]
			if len(*f) == 0 {
				continue
			}
			p := bytes.Clone((*f)[0])
			switch r.IntN(20) {
			case 0: // lost
			case 1:
				in = append(in, bytes.Clone(p), p) // twice
			case 2:
				p[len(p)-1] ^= 1
				in = append(in, p)
			default:
				in = append(in, p)
			}
			*f = (*f)[1:]
		}
		perFlow := func(ps [][]byte) map[string][][]byte {
			m := map[string][][]byte{}
			for _, p := range ps {
				m[string(p[20:22])] = append(m[string(p[20:22])], p)
			}
			return m
		}
		got := back(t, coalesce(t, c, clones(in)...))
		want := perFlow(in)
		for flow, ps := range perFlow(got) {
			samePackets(t, want[flow], ps)
			delete(want, flow)
		}
		if len(want) != 0 || t.Failed() {
			t.Fatalf("seed %d: %d flows are missing", seed, len(want))
		}
	}
}
