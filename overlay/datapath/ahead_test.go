package datapath

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"tulle/overlay/flow"
	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
	"tulle/overlay/udp"
)

// What a frame seems to be of is what it is of, and of a frame that is cut off, or with
// a packet of another kind, nothing is said.
func TestWhatAFrameSeems(t *testing.T) {
	a, b := addrPort("10.255.1.2:4000"), addrPort("10.255.2.3:80")
	for _, ends := range [][2]netip.AddrPort{{a, b}, {twin(a), twin(b)}} {
		for _, p := range [][]byte{packettest.TCP(ends[0], ends[1], fSYN, 1, 0, nil), packettest.UDP(ends[0], ends[1], []byte("x"))} {
			var h packet.Header
			if err := packet.Parse(p, &h); err != nil {
				t.Fatal(err)
			}
			frame := append(make([]byte, headroom), p...)
			want := flow.Key{Src: h.Src, Dst: h.Dst, SrcPort: h.SrcPort, DstPort: h.DstPort, Proto: h.Proto}
			if k, ok := seems(frame); !ok || k != want {
				t.Errorf("seems %v (%t), is %v", k, ok, want)
			}
			for n := range headroom + h.HeaderLen + 4 {
				if k, ok := seems(frame[:n:n]); ok {
					t.Errorf("%d bytes of it seem %v", n, k)
				}
			}
		}
	}
	for what, p := range map[string][]byte{
		"ICMP":      packettest.ICMP(a.Addr(), b.Addr(), 8, 0, 1, make([]byte, 40)),
		"options":   packettest.IPv4{Src: a.Addr(), Dst: b.Addr(), Proto: 17, Options: []byte{1, 1, 1, 1}, Payload: make([]byte, 40)}.Bytes(),
		"extension": packettest.IPv6{Src: twin(a).Addr(), Dst: twin(b).Addr(), Proto: 17, First: 60, Extensions: []byte{17, 0, 1, 4, 0, 0, 0, 0}, Payload: make([]byte, 40)}.Bytes(),
	} {
		if k, ok := seems(append(make([]byte, headroom), p...)); ok {
			t.Errorf("%s seems %v", what, k)
		}
	}
}

// BenchmarkCrowd: small datagrams of many flows, each frame another's.
func BenchmarkCrowd(b *testing.B) {
	for _, flows := range []int{64, 10_000, 100_000, 1_000_000} {
		w := newWorld(b)
		big := func(o *Options) { o.Limits.Flow.Flows, o.Limits.Flow.PerEndpoint = 1<<21, 1<<21 }
		a, c := w.cell(1, big), w.cell(2, big)
		server, remote := a.container("db", 3), c.container("db", 4)
		w.allow("db db udp 1-65535")
		server.ep.dev = &sink{}
		const messages, segments = 8, 8
		p := packettest.UDP(remote.at(1), server.at(1), make([]byte, 64))
		p[26], p[27] = 0, 0
		frame := sealed(a, tags["db"], p)
		batch := make([]udp.Message, messages)
		for i := range batch {
			batch[i] = udp.Message{Buf: make([]byte, segments*len(frame)), N: segments * len(frame), Segment: len(frame), From: c.underlay}
		}
		in := a.path.in
		fill := func(next func() uint32) {
			for i := range batch {
				for j := range segments {
					f := batch[i].Buf[j*len(frame):][:len(frame)]
					copy(f, frame)
					n := next()
					binary.BigEndian.PutUint16(f[headroom+20:], uint16(1+n>>10))
					binary.BigEndian.PutUint16(f[headroom+22:], uint16(1+n&1023))
				}
			}
		}
		at := uint32(0)
		for range (flows + 63) / 64 {
			fill(func() uint32 { at++; return at - 1 })
			in.receive(batch)
		}
		r := rand.New(rand.NewPCG(1, 2))
		b.Run(fmt.Sprintf("%d flows", a.path.flows.Len()), func(b *testing.B) {
			b.ReportAllocs()
			for n := 0; n < b.N; n += messages * segments {
				fill(func() uint32 { return r.Uint32N(uint32(flows)) })
				in.receive(batch)
			}
		})
		b.Run(fmt.Sprintf("%d flows, trains of 8", a.path.flows.Len()), func(b *testing.B) {
			for n := 0; n < b.N; n += messages * segments {
				x, same := 0, uint32(0)
				fill(func() uint32 {
					if x++; x%segments == 1 {
						same = r.Uint32N(uint32(flows))
					}
					return same
				})
				in.receive(batch)
			}
		})
	}
}
