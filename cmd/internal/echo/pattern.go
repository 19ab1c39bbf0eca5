package echo

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
)

// blockLen is what one write sends: large enough that the pattern, not the
// system call, is cheap.
const blockLen = 128 << 10

// base is the same in every process.
var base = func() []byte {
	b := make([]byte, blockLen)
	rand.NewChaCha8([32]byte([]byte("tulle echo deterministic pattern"))).Read(b)
	return b
}()

// pattern is a stream that both ends know: block n is base with n stamped on its
// first eight bytes. Lost, repeated or swapped pieces of any length show, and
// checking costs a compare.
type pattern struct {
	block []byte
	next  uint64
}

func newPattern() *pattern { return &pattern{block: bytes.Clone(base)} }

// block is the stream's next blockLen bytes, valid until the next call.
func (p *pattern) nextBlock() []byte {
	binary.BigEndian.PutUint64(p.block, p.next)
	p.next++
	return p.block
}

// verify reads exactly n bytes of the stream from r. It returns how many came
// and were right, and calls progress with that number as they come.
func verify(r io.Reader, n int64, progress func(int64)) (int64, error) {
	var (
		want = newPattern()
		got  = make([]byte, blockLen)
		done int64
	)
	for done < n {
		expected := want.nextBlock()
		if left := n - done; left < blockLen {
			expected = expected[:left]
		}
		for off := 0; off < len(expected); {
			k, err := r.Read(got[off:len(expected)])
			if !bytes.Equal(got[off:off+k], expected[off:off+k]) {
				return done, fmt.Errorf("near byte %d: %w", done, errCorrupt)
			}
			off += k
			done += int64(k)
			progress(done)
			if err != nil && done < n {
				return done, err
			}
		}
	}
	return done, nil
}
