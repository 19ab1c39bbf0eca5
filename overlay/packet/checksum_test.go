package packet

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"tulle/overlay/packet/packettest"
)

// The fast sum against two bytes at a time: every length up to 600, some longer,
// random bytes and the bytes that carry most.
func TestSumIsRFC1071(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, 70000)
	lengths := []int{1399, 1400, 8191, 65535}
	for n := range 600 {
		lengths = append(lengths, n)
	}
	for _, fill := range []string{"random", "ones", "zero"} {
		for i := range b {
			switch fill {
			case "random":
				b[i] = byte(r.Uint32())
			case "ones":
				b[i] = 0xff
			case "zero":
				b[i] = 0
			}
		}
		for _, n := range lengths {
			for _, at := range []int{0, 1, 7} {
				p := b[at : at+n]
				if got, want := fold(sum(p, 0)), packettest.Sum(p); got != want {
					t.Fatalf("%s, %d bytes at %d: got %#04x, want %#04x", fill, n, at, got, want)
				}
				if n > 30 {
					if got, want := fold(sum(p[30:], sum(p[:30], 0))), packettest.Sum(p); got != want {
						t.Fatalf("%s, %d bytes at %d in two parts: got %#04x, want %#04x", fill, n, at, got, want)
					}
				}
			}
		}
	}
}

// RFC 1071 section 3's example.
func TestSumVector(t *testing.T) {
	if got := fold(sum([]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}, 0)); got != 0xddf2 {
		t.Errorf("got %#04x, want 0xddf2", got)
	}
}

func BenchmarkSum(b *testing.B) {
	for _, n := range []int{20, 64, 576, 1400, 65000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p := make([]byte, n)
			b.SetBytes(int64(n))
			var s uint64
			for b.Loop() {
				s += sum(p, 0)
			}
			if s != 0 {
				b.Fatal(s)
			}
		})
	}
}
