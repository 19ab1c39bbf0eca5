package packet_test

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tulle/overlay/packet"
	"tulle/overlay/packet/packettest"
)

var cell = netip.MustParseAddr("10.255.2.0")

// well checks all checksums of an answer and parses it.
func well(t *testing.T, p []byte) packet.Header {
	t.Helper()
	h := parse(t, p)
	if !packet.VerifyChecksum(p, &h) || h.TotalLen != len(p) {
		t.Errorf("answer % x: wrong checksum or length", p)
	}
	return h
}

func TestAppendReset(t *testing.T) {
	const rst, ack, syn, fin, psh = packet.FlagRST, packet.FlagACK, packet.FlagSYN, packet.FlagFIN, packet.FlagPSH
	for _, c := range []struct {
		name     string
		segment  []byte
		flags    uint8
		seq, ack uint32
	}{
		// RFC 9293 3.10.7.1: without ACK, <SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>.
		{"SYN", packettest.TCP(web, db, syn, 1000, 0, nil), rst | ack, 0, 1001},
		{"SYN at the end of the numbers", packettest.TCP(web, db, syn, 0xffffffff, 0, nil), rst | ack, 0, 0},
		{"SYN with data and FIN", packettest.TCP(web, db, syn|fin, 1000, 0, []byte("hello")), rst | ack, 0, 1007},
		{"no flag at all", packettest.TCP(web, db, 0, 1000, 0, []byte("x")), rst | ack, 0, 1001},
		// With ACK, <SEQ=SEG.ACK><CTL=RST>.
		{"SYN and ACK", packettest.TCP(web, db, syn|ack, 1000, 555, nil), rst, 555, 0},
		{"data", packettest.TCP(web, db, ack|psh, 1000, 0xfffffff0, []byte("hello")), rst, 0xfffffff0, 0},
		{"FIN", packettest.TCP(web, db, ack|fin, 1000, 7, nil), rst, 7, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := parse(t, c.segment)
			answer := packet.AppendReset([]byte("before"), c.segment, &h)
			if string(answer[:6]) != "before" {
				t.Fatal("what was in dst is gone")
			}
			got := well(t, answer[6:])
			if got.Src != db.Addr() || got.Dst != web.Addr() || got.SrcPort != db.Port() || got.DstPort != web.Port() {
				t.Errorf("goes from %s:%d to %s:%d", got.Src, got.SrcPort, got.Dst, got.DstPort)
			}
			if got.TCPFlags != c.flags || got.Seq != c.seq || got.Ack != c.ack {
				t.Errorf("flags %#x seq %d ack %d, want %#x %d %d", got.TCPFlags, got.Seq, got.Ack, c.flags, c.seq, c.ack)
			}
		})
	}
}

// What is answered by nothing at all.
func TestNeverAnswered(t *testing.T) {
	multicast := netip.MustParseAddrPort("224.0.0.1:1")
	broadcast := netip.MustParseAddrPort("255.255.255.255:1")
	unset := netip.MustParseAddrPort("0.0.0.0:1")
	loopback := netip.MustParseAddrPort("127.0.0.1:1")
	later := packettest.IPv4{Src: web.Addr(), Dst: db.Addr(), Proto: 6, Offset: 800, Payload: randomBytes(30)}.Bytes()
	icmp := func(typ uint8) []byte { return packettest.ICMP(web.Addr(), db.Addr(), typ, 0, 0, randomBytes(28)) }
	all := map[string][]byte{
		"later fragment": later,
		"to multicast":   packettest.UDP(web, multicast, nil),
		"to broadcast":   packettest.UDP(web, broadcast, nil),
		"from broadcast": packettest.UDP(broadcast, db, nil),
		"from multicast": packettest.TCP(multicast, db, packet.FlagSYN, 1, 0, nil),
		"from nobody":    packettest.TCP(unset, db, packet.FlagSYN, 1, 0, nil),
		"from loopback":  packettest.TCP(loopback, db, packet.FlagSYN, 1, 0, nil),
		"to loopback":    packettest.TCP(web, loopback, packet.FlagSYN, 1, 0, nil),
		"unreachable":    icmp(3),
		"source quench":  icmp(4),
		"redirect":       icmp(5),
		"time exceeded":  icmp(11),
		"parameter":      icmp(12),
		"unknown ICMP":   icmp(77),
	}
	dst := []byte("before")
	for name, p := range all {
		h := parse(t, p)
		for what, got := range map[string][]byte{
			"reset":         packet.AppendReset(dst, p, &h),
			"unreachable":   packet.AppendUnreachable(dst, cell, packet.CodePortUnreachable, p, &h),
			"too big":       packet.AppendTooBig(dst, cell, 1400, p, &h),
			"time exceeded": packet.AppendTimeExceeded(dst, cell, p, &h),
		} {
			if string(got) != "before" {
				t.Errorf("%s is answered with %s", name, what)
			}
		}
	}
	for name, p := range map[string][]byte{
		"RST":         packettest.TCP(web, db, packet.FlagRST, 1, 0, nil),
		"RST and ACK": packettest.TCP(web, db, packet.FlagRST|packet.FlagACK, 1, 5, nil),
		"UDP":         packettest.UDP(web, db, nil),
	} {
		h := parse(t, p)
		if got := packet.AppendReset(dst, p, &h); string(got) != "before" {
			t.Errorf("%s is answered with a reset", name)
		}
	}
}

func TestAppendResetTo(t *testing.T) {
	got := well(t, packet.AppendResetTo(nil, db.Addr(), web.Addr(), db.Port(), web.Port(), 123, 456))
	if got.Src != db.Addr() || got.Dst != web.Addr() || got.SrcPort != db.Port() || got.DstPort != web.Port() ||
		got.Seq != 123 || got.Ack != 456 || got.TCPFlags != packet.FlagRST|packet.FlagACK {
		t.Errorf("got %+v", got)
	}
}

func TestAppendUnreachable(t *testing.T) {
	for _, n := range []int{0, 10, 520, 521, 9000} {
		p := packettest.UDP(web, db, randomBytes(n))
		h := parse(t, p)
		answer := packet.AppendUnreachable(nil, cell, packet.CodePortUnreachable, p, &h)
		got := well(t, answer)
		if got.Src != cell || got.Dst != web.Addr() || got.ICMPType != 3 || got.ICMPCode != 3 {
			t.Errorf("%d bytes: got %+v", n, got)
		}
		if quote := answer[28:]; len(answer) > 576 || !bytes.HasPrefix(p, quote) || len(quote) != min(len(p), 548) {
			t.Errorf("%d bytes: answer of %d quotes %d of %d", n, len(answer), len(quote), len(p))
		}
		var q packet.Header
		if err := packet.ParseQuoted(answer, &got, &q); err != nil {
			t.Errorf("%d bytes: %v", n, err)
		}
		if d := cmp.Diff(h, q, compareAddrs); d != "" {
			t.Errorf("%d bytes: quoted header differs:\n%s", n, d)
		}
	}
	// An echo request is answered, unlike an error.
	echo := packettest.ICMP(web.Addr(), db.Addr(), 8, 0, 1, nil)
	h := parse(t, echo)
	well(t, packet.AppendUnreachable(nil, cell, packet.CodePortUnreachable, echo, &h))
}

func TestAppendTooBig(t *testing.T) {
	p := packettest.TCP(web, db, packet.FlagACK, 1, 2, randomBytes(2000))
	h := parse(t, p)
	answer := packet.AppendTooBig(nil, cell, 1390, p, &h)
	got := well(t, answer)
	if got.ICMPType != 3 || got.ICMPCode != 4 || !bytes.Equal(answer[24:28], []byte{0, 0, 0x05, 0x6e}) {
		t.Errorf("type %d code %d, rest % x", got.ICMPType, got.ICMPCode, answer[24:28])
	}
}

func TestAppendTimeExceeded(t *testing.T) {
	p := packettest.TCP(web, db, packet.FlagACK, 1, 2, nil)
	h := parse(t, p)
	if got := well(t, packet.AppendTimeExceeded(nil, cell, p, &h)); got.ICMPType != 11 || got.ICMPCode != 0 || got.Dst != web.Addr() {
		t.Errorf("got %+v", got)
	}
}

func TestAppendUDP(t *testing.T) {
	for _, n := range []int{0, 1, 500, 65507} {
		payload := randomBytes(n)
		p := packet.AppendUDP(make([]byte, 0, 65600), db, web, payload)
		got := well(t, p)
		if got.Src != db.Addr() || got.DstPort != web.Port() || !bytes.Equal(p[28:], payload) {
			t.Errorf("%d bytes: got %+v", n, got)
		}
	}
}

func TestParseQuoted(t *testing.T) {
	tcp := packettest.TCPSegment{Src: web, Dst: db, Flags: packet.FlagACK, Seq: 99, Ack: 7, Window: 3, Options: timestamps, Payload: randomBytes(1000)}.Bytes()
	whole := parse(t, tcp)
	quote := func(p []byte) ([]byte, packet.Header) {
		e := packettest.ICMP(cell, web.Addr(), 3, 3, 0, p)
		return e, parse(t, e)
	}
	for n := range len(tcp) {
		e, h := quote(tcp[:n])
		q := packet.Header{Ack: 1, TCPFlags: 0xff, ICMPType: 9, L4Len: 99}
		err := packet.ParseQuoted(e, &h, &q)
		if n < 28 {
			if err == nil {
				t.Errorf("a quote of %d bytes was accepted", n)
			}
			continue
		}
		want := whole
		if n < 40 { // eight bytes of TCP: ports and sequence number
			want.Ack, want.TCPFlags, want.Window, want.L4Len = 0, 0, 0, 0
			want.PayloadLen = whole.TotalLen - 40
		}
		if d := cmp.Diff(want, q, compareAddrs); err != nil || d != "" {
			t.Fatalf("a quote of %d bytes: %v\n%s", n, err, d)
		}
	}
	// TTL and TOS change on the way, and nobody mends a quote's checksum.
	changed := bytes.Clone(tcp)
	changed[8]--
	e, h := quote(changed)
	var q packet.Header
	if err := packet.ParseQuoted(e, &h, &q); err != nil || q.TTL != 63 {
		t.Errorf("quote with another TTL: %v", err)
	}
	later := packettest.IPv4{Src: web.Addr(), Dst: db.Addr(), Proto: 6, Offset: 800, Payload: []byte{1, 2, 3, 4}}.Bytes()
	e, h = quote(later)
	if err := packet.ParseQuoted(e, &h, &q); err != nil || q.FragmentOffset != 800 || q.SrcPort != 0 {
		t.Errorf("quote of a later fragment: %v, %+v", err, q)
	}
	for name, p := range map[string][]byte{
		"echo request": packettest.ICMP(cell, web.Addr(), 8, 0, 0, tcp),
		"TCP":          tcp,
	} {
		h := parse(t, p)
		if err := packet.ParseQuoted(p, &h, &q); !errors.Is(err, packet.ErrNotQuoting) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
