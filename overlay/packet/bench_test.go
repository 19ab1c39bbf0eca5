package packet_test

import (
	"fmt"
	"net/netip"
	"testing"

	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
)

func BenchmarkCoalesce(b *testing.B) {
	for _, flows := range []int{1, 4, 16} {
		b.Run(fmt.Sprintf("%d flows", flows), func(b *testing.B) {
			var batch [][]byte
			for i := range 46 {
				for f := range flows {
					src := netip.AddrPortFrom(web.Addr(), uint16(f))
					batch = append(batch, stream(src, db, 1, randomBytes(1398*46), 1398)[i])
				}
			}
			bytesIn := 0
			for _, p := range batch {
				bytesIn += len(p)
			}
			c := packet.NewCoalescer()
			fresh := clones(batch)
			b.SetBytes(int64(bytesIn))
			b.ReportAllocs()
			for b.Loop() {
				for i, p := range batch {
					copy(fresh[i][:40], p[:40]) // Pieces rewrites headers
				}
				for _, p := range fresh {
					var h packet.Header
					if err := packet.Parse(p, &h); err != nil {
						b.Fatal(err)
					}
					c.Add(p, &h)
				}
				for g := range c.Len() {
					c.Pieces(g)
				}
				c.Reset()
			}
		})
	}
}

func BenchmarkSplit(b *testing.B) {
	p, v := super(packettest.TCPSegment{Src: web, Dst: db, Flags: packet.FlagACK, Options: timestamps, Payload: randomBytes(1398 * 46)}.Bytes(), packet.GSOTCPv4, 1398)
	dst := make([]byte, 70000)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		var h packet.Header
		if err := packet.Parse(p, &h); err != nil {
			b.Fatal(err)
		}
		if err := v.Check(&h, len(p)); err != nil {
			b.Fatal(err)
		}
		at := 0
		for i := range packet.Segments(&h, &v) {
			at += packet.Split(dst[at:], p, &h, &v, i)
		}
	}
}

func BenchmarkParse(b *testing.B) {
	p := packettest.TCP(web, db, packet.FlagACK, 1, 1, randomBytes(1000))
	b.ReportAllocs()
	for b.Loop() {
		var h packet.Header
		if err := packet.Parse(p, &h); err != nil {
			b.Fatal(err)
		}
	}
}
