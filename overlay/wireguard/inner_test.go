package wireguard

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The packet that a kernel sends for a frame of four bytes, from 100.64.0.1 to
// 100.64.0.2, but for its identification and source port.
const packetHex = "4500 0020 0001 0000 40 11 b249 64400001 64400002" + "12b5 12b5 000c 0000" + "deadbeef"

// The addresses in it.
const (
	theirs = 0x64400001
	own    = 0x64400002
)

func TestHeader(t *testing.T) {
	want := unhex(t, packetHex)
	got := make([]byte, len(want))
	copy(got[HeaderLen:], want[HeaderLen:])
	header(got, theirs, own, 4, 1)
	if !bytes.Equal(got, want) {
		t.Errorf("got\n% x, want\n% x", got, want)
	}
}

func TestUnwrap(t *testing.T) {
	whole := unhex(t, packetHex)
	change := func(at int, to ...byte) []byte {
		b := bytes.Clone(whole)
		copy(b[at:], to)
		return b
	}
	const nobody, noFrame = "not the peer's", "no frame"
	for _, c := range []struct {
		name string
		p    []byte
		want string
	}{
		{"whole", whole, "deadbeef"},
		{"with a checksum, which the tunnel makes needless", change(26, 0x12, 0x34), "deadbeef"},
		{"from any port", change(20, 0xff, 0xff), "deadbeef"},
		{"padded", append(bytes.Clone(whole), 0, 0, 0), "deadbeef"},
		{"don't fragment", change(6, 0x40), "deadbeef"},
		{"shorter frame", change(24, 0, 9), "de"},
		{"from another", change(12, 100, 64, 0, 3), nobody},
		{"IPv6", change(0, 0x60), nobody},
		{"longer than what came", change(2, 0, 33), nobody},
		{"shorter than its header", change(2, 0, 19), nobody},
		{"to another", change(16, 100, 64, 0, 3), noFrame},
		{"to another port", change(22, 0x12, 0xb6), noFrame},
		{"TCP", change(9, 6), noFrame},
		{"options", change(0, 0x46), noFrame},
		{"first fragment", change(6, 0x20), noFrame},
		{"later fragment", change(7, 1), noFrame},
		{"longer than the packet", change(24, 0, 13), noFrame},
		{"without a frame", change(24, 0, 8), noFrame},
		{"UDP length 0", change(24, 0, 0), noFrame},
	} {
		frame, from := unwrap(c.p, own, theirs)
		got := hex.EncodeToString(frame)
		switch {
		case !from.IsValid():
			got = nobody
		case frame == nil:
			got = noFrame
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
		if from.IsValid() && from.Addr() != netip.MustParseAddr("100.64.0.1") {
			t.Errorf("%s: from %s", c.name, from)
		}
	}
	for i := range whole {
		if got, from := unwrap(whole[:i], own, theirs); got != nil || from.IsValid() {
			t.Errorf("the first %d bytes are taken for a packet", i)
		}
	}
}

// Whatever a peer with a key sends: no panic, and a frame lies inside the packet.
func FuzzUnwrap(f *testing.F) {
	f.Add(unhex(f, packetHex))
	f.Fuzz(func(t *testing.T, p []byte) {
		frame, from := unwrap(p, own, theirs)
		if frame != nil && (len(frame) == 0 || !bytes.HasSuffix(p[:HeaderLen+len(frame)], frame) || !from.IsValid()) {
			t.Errorf("%x from %s in %x", frame, from, p)
		}
	})
}

// Headers written are headers read.
func FuzzFrameThroughHeader(f *testing.F) {
	f.Add([]byte("frame"))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) == 0 || len(frame) > 65535-HeaderLen {
			return
		}
		p := make([]byte, HeaderLen+len(frame))
		copy(p[HeaderLen:], frame)
		header(p, theirs, own, len(frame), 7)
		if got, _ := unwrap(p, own, theirs); !bytes.Equal(got, frame) {
			t.Errorf("%x became %x", frame, got)
		}
	})
}
