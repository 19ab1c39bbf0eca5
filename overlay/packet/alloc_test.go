package packet_test

import (
	"testing"

	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
)

// Nothing on a packet's way allocates.
func TestNoAllocations(t *testing.T) {
	p, v := super(packettest.TCP(web, db, packet.FlagACK, 1, 1, randomBytes(30000)), packet.GSOTCPv4, 1400)
	small := packettest.UDP(web, db, randomBytes(100))
	segments := stream(web, db, 1, randomBytes(40000), 1400)
	icmp := packettest.ICMP(cell, web.Addr(), 3, 3, 0, p[:60])
	dst := make([]byte, 2000)
	c := packet.NewCoalescer()
	var h, q packet.Header
	for name, f := range map[string]func(){
		"parse, check, split": func() {
			if packet.Parse(p, &h) != nil || v.Check(&h, len(p)) != nil {
				t.Fatal("refused")
			}
			for i := range packet.Segments(&h, &v) {
				packet.Split(dst, p, &h, &v, i)
			}
		},
		"one packet": func() {
			if packet.Parse(small, &h) != nil || !packet.VerifyChecksum(small, &h) || !packet.DecrementTTL(small) {
				t.Fatal("refused")
			}
			small[8]++
			packettest.Fix(small)
		},
		"quoted": func() {
			if packet.Parse(icmp, &h) != nil || packet.ParseQuoted(icmp, &h, &q) != nil {
				t.Fatal("refused")
			}
		},
		"answers": func() {
			if packet.Parse(p, &h) != nil {
				t.Fatal("refused")
			}
			packet.AppendReset(dst[:0], p, &h)
			packet.AppendUnreachable(dst[:0], cell, packet.CodePortUnreachable, p, &h)
			packet.AppendResetTo(dst[:0], cell, web.Addr(), 1, 2, 3, 4)
		},
		"coalesce": func() {
			for _, s := range segments {
				if packet.Parse(s, &h) == nil {
					c.Add(s, &h)
				}
			}
			for g := range c.Len() {
				c.Pieces(g)
			}
			c.Reset()
		},
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
