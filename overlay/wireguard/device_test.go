package wireguard

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"tulle/overlay/udp"
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

func TestHeader(t *testing.T) {
	want := unhex(t, packetHex)
	got := make([]byte, len(want))
	copy(got[HeaderLen:], want[HeaderLen:])
	header(got, [4]byte{100, 64, 0, 1}, [4]byte{100, 64, 0, 2}, 4, 1)
	if !bytes.Equal(got, want) {
		t.Errorf("got\n% x, want\n% x", got, want)
	}
}

func TestUnwrap(t *testing.T) {
	m := newMemory(netip.MustParseAddr("100.64.0.2"), 1440, nil)
	whole := unhex(t, packetHex)
	change := func(at int, to ...byte) []byte {
		b := bytes.Clone(whole)
		copy(b[at:], to)
		return b
	}
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
		{"to another", change(16, 100, 64, 0, 3), ""},
		{"to another port", change(22, 0x12, 0xb6), ""},
		{"TCP", change(9, 6), ""},
		{"IPv6", change(0, 0x60), ""},
		{"options", change(0, 0x46), ""},
		{"first fragment", change(6, 0x20), ""},
		{"later fragment", change(7, 1), ""},
		{"longer than the packet", change(24, 0, 13), ""},
		{"without a frame", change(24, 0, 8), ""},
		{"UDP length 0", change(24, 0, 0), ""},
	} {
		got, from := m.unwrap(c.p)
		if hex.EncodeToString(got) != c.want {
			t.Errorf("%s: %x, want %s", c.name, got, c.want)
		}
		if got != nil && from.Addr() != netip.MustParseAddr("100.64.0.1") {
			t.Errorf("%s: from %s", c.name, from)
		}
	}
	for i := range whole {
		if got, _ := m.unwrap(whole[:i]); got != nil {
			t.Errorf("the first %d bytes are taken for a frame", i)
		}
	}
}

// What is no frame is told of as an empty one, with its sender.
func TestWriteTellsOfWhatIsNoFrame(t *testing.T) {
	var got []string
	m := newMemory(netip.MustParseAddr("100.64.0.2"), 1440, func(batch []udp.Message) {
		for _, b := range batch {
			got = append(got, b.From.Addr().String()+" "+hex.EncodeToString(b.Buf[:b.N]))
		}
	})
	tcp := unhex(t, packetHex)
	tcp[9] = 6
	bufs := [][]byte{append(make([]byte, 16), unhex(t, packetHex)...), append(make([]byte, 16), tcp...)}
	if n, err := m.Write(bufs, 16); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	if want := "100.64.0.1 deadbeef,100.64.0.1 "; strings.Join(got, ",") != want {
		t.Errorf("got %q, want %q", strings.Join(got, ","), want)
	}
}

// Whatever a peer with a key sends: no panic, and a frame lies inside the packet.
func FuzzUnwrap(f *testing.F) {
	f.Add(unhex(f, packetHex))
	m := newMemory(netip.MustParseAddr("100.64.0.2"), 1440, func(batch []udp.Message) {
		for _, b := range batch {
			if b.N != len(b.Buf) {
				panic("a message longer than its buffer")
			}
		}
	})
	f.Fuzz(func(t *testing.T, p []byte) {
		frame, from := m.unwrap(p)
		if frame != nil && (len(frame) == 0 || !bytes.HasSuffix(p[:HeaderLen+len(frame)], frame) || !from.IsValid()) {
			t.Errorf("%x from %s in %x", frame, from, p)
		}
		if _, err := m.Write([][]byte{p}, 0); err != nil {
			t.Error(err)
		}
	})
}

// Headers written are headers read.
func FuzzFrameThroughHeader(f *testing.F) {
	f.Add([]byte("frame"))
	m := newMemory(netip.MustParseAddr("100.64.0.2"), 1440, nil)
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) == 0 || len(frame) > 65535-HeaderLen {
			return
		}
		p := make([]byte, HeaderLen+len(frame))
		copy(p[HeaderLen:], frame)
		header(p, [4]byte{100, 64, 0, 1}, m.own, len(frame), 7)
		if got, _ := m.unwrap(p); !bytes.Equal(got, frame) {
			t.Errorf("%x became %x", frame, got)
		}
	})
}
