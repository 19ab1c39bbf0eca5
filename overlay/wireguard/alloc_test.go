package wireguard

import (
	"bytes"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"tulle/overlay/udp"
)

// sink is a socket that keeps a copy of the last train, and never receives.
type sink struct {
	local   netip.AddrPort
	last    []byte
	segment int
	done    chan struct{}
}

func newSink(host byte) *sink {
	return &sink{netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, host}), 51820), make([]byte, 0, 1<<16), 0, make(chan struct{})}
}

func (s *sink) Send(_ netip.AddrPort, b []byte, segment int) error {
	s.last, s.segment = append(s.last[:0], b...), segment
	return nil
}
func (s *sink) SendECN(to netip.AddrPort, b []byte, segment int, _ uint8) error {
	return s.Send(to, b, segment)
}
func (s *sink) Receive([]udp.Message) (int, error) { <-s.done; return 0, udp.ErrClosed }
func (s *sink) Local() netip.AddrPort              { return s.local }
func (s *sink) Close() error                       { close(s.done); return nil }

// end is a tunnel over a sink, whose goroutines have nothing to do.
type end struct {
	*Tunnel
	key  PrivateKey
	sink *sink
	got  int // bytes of frames received
}

func newEnd(t testing.TB, host byte) *end {
	e := &end{sink: newSink(host)}
	var err error
	if e.key, err = GenerateKey(); err != nil {
		t.Fatal(err)
	}
	e.Tunnel, err = New(Options{
		Keys: []PrivateKey{e.key}, Address: netip.AddrFrom4([4]byte{100, 64, 0, host}), Conns: []udp.Conn{e.sink}, MTU: 1440,
		Receive: func(batch []udp.Message) {
			for _, m := range batch {
				e.got += m.N
			}
		},
		Log: slog.New(slog.DiscardHandler), clock: func() int64 { return int64(time.Hour) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// twoEnds have a session with each other: the handshake was carried by hand.
func twoEnds(t testing.TB) (a, b *end) {
	a, b = newEnd(t, 1), newEnd(t, 2)
	for _, e := range []struct{ e, other *end }{{a, b}, {b, a}} {
		if err := e.e.Set("other", Peer{Key: e.other.key.Public(), Address: e.other.Address(), Endpoint: e.other.Local()}); err != nil {
			t.Fatal(err)
		}
	}
	carry(a, b, "other")
	for _, e := range []*end{a, b} {
		if _, there := e.Session("other"); !there {
			t.Fatal("no session")
		}
	}
	return a, b
}

// carry carries the handshake of a session that a begins with a peer of that name.
func carry(a, b *end, name string) {
	a.Begin(name)
	for _, e := range []struct{ from, to *end }{{a, b}, {b, a}} {
		m := message{from: e.from.Local(), n: len(e.from.sink.last)}
		copy(m.b[:], e.from.sink.last)
		e.to.message(&m, false)
	}
	b.take(a.sink, 0) // the confirmation
}

// take receives what the other end sent last, in a buffer of its own.
func (e *end) take(from *sink, n int) {
	r := e.receivers[0]
	r.in[0].N = copy(r.in[0].Buf, from.last)
	r.in[0].Segment, r.in[0].From = from.segment, from.local
	e.got = 0
	r.take(r.in[:1])
	if e.got != n {
		panic("other frames than sent")
	}
}

const (
	testFrame  = 1412
	testFrames = 44
)

// aTrain is room for a super-packet's frames.
func aTrain(t *Tunnel) []byte {
	first, stride, last := t.Room(testFrame)
	n := first + (testFrames-1)*stride + testFrame
	return make([]byte, n, n+last)
}

func TestNothingIsAllocatedForATrain(t *testing.T) {
	a, b := twoEnds(t)
	train := aTrain(a.Tunnel)
	for range 10 { // sizes are found
		if err := a.SendTrain(b.Address(), 7, train, testFrame); err != nil {
			t.Fatal(err)
		}
		b.take(a.sink, testFrame*testFrames)
	}
	if n := testing.AllocsPerRun(200, func() {
		if err := a.SendTrain(b.Address(), 7, train, testFrame); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations to send a train", n)
	}
	if n := testing.AllocsPerRun(200, func() {
		if err := a.SendTrain(b.Address(), 7, train, testFrame); err != nil {
			t.Fatal(err)
		}
		b.take(a.sink, testFrame*testFrames)
	}); n != 0 {
		t.Errorf("%v allocations to send a train and to receive it", n)
	}
}

// Frames come out as they went in, whatever is around them, the last one shorter.
func TestTrainIsSealedInPlace(t *testing.T) {
	a, b := twoEnds(t)
	var got [][]byte
	b.Tunnel.receive = func(batch []udp.Message) {
		for _, m := range batch {
			got = append(got, bytes.Clone(m.Buf[:m.N]))
		}
	}
	for _, c := range []struct{ frame, frames, last int }{{1, 1, 1}, {1412, 44, 1412}, {1412, 44, 3}, {100, 64, 99}, {17, 3, 1}, {1412, 1, 1412}} {
		first, stride, last := a.Room(c.frame)
		n := first + (c.frames-1)*stride + c.last
		train := bytes.Repeat([]byte{0xee}, n+last)[:n]
		var want [][]byte
		for i := range c.frames {
			size := c.frame
			if i == c.frames-1 {
				size = c.last
			}
			f := train[first+i*stride:][:size]
			for j := range f {
				f[j] = byte(i + j)
			}
			want = append(want, bytes.Clone(f))
		}
		if err := a.SendTrain(b.Address(), 0, train, c.frame); err != nil {
			t.Fatal(err)
		}
		if c.frames > 1 && a.sink.segment != stride {
			t.Errorf("%+v: datagrams of %d bytes, want %d", c, a.sink.segment, stride)
		}
		got = nil
		r := b.receivers[0]
		r.in[0].N = copy(r.in[0].Buf, a.sink.last)
		r.in[0].Segment, r.in[0].From = a.sink.segment, a.sink.local
		r.take(r.in[:1])
		if len(got) != len(want) {
			t.Errorf("%+v: %d frames", c, len(got))
			continue
		}
		for i := range want {
			if !bytes.Equal(got[i], want[i]) {
				t.Errorf("%+v: frame %d is %x, want %x", c, i, got[i], want[i])
			}
		}
	}
}

func BenchmarkSeal(b *testing.B) {
	x, y := twoEnds(b)
	train := aTrain(x.Tunnel)
	b.SetBytes(testFrame * testFrames)
	b.ReportAllocs()
	for b.Loop() {
		if err := x.SendTrain(y.Address(), 7, train, testFrame); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSealAndOpen(b *testing.B) {
	x, y := twoEnds(b)
	train := aTrain(x.Tunnel)
	b.SetBytes(testFrame * testFrames)
	b.ReportAllocs()
	for b.Loop() {
		if err := x.SendTrain(y.Address(), 7, train, testFrame); err != nil {
			b.Fatal(err)
		}
		y.take(x.sink, testFrame*testFrames)
	}
}
