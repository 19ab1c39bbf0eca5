package udp_test

import (
	"net/netip"
	"testing"

	"tulle/overlay/udp"
)

// The outer congestion bits leave with a datagram, and with each of a train, and
// are told at the other end, over both families, whatever the kernel offers.
func TestCongestionBitsCross(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		for name, opts := range map[string]udp.Options{"offloads": {}, "none": {NoSegmentation: true, NoGRO: true}} {
			a, b := listen(t, netip.MustParseAddrPort(at), opts), listen(t, netip.MustParseAddrPort(at), opts)
			batch := []udp.Message{{Buf: make([]byte, 65535)}}
			for ecn := range uint8(4) {
				for _, segment := range []int{0, 1000} {
					if err := a.SendECN(b.Local(), make([]byte, 2500), segment, ecn); err != nil {
						t.Fatalf("%s, %s: %v", at, name, err)
					}
					for got := 0; got < 2500; got += batch[0].N {
						if _, err := b.Receive(batch); err != nil {
							t.Fatal(err)
						}
						if batch[0].ECN != ecn {
							t.Errorf("%s, %s, segment %d: sent %d, got %d", at, name, segment, ecn, batch[0].ECN)
						}
						if batch[0].N == 2500 && segment > 0 && batch[0].Segment != segment {
							t.Errorf("%s, %s: segments of %d", at, name, batch[0].Segment)
						}
					}
				}
			}
		}
	}
}
