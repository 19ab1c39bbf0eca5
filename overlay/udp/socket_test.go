package udp_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tulle/overlay/netcfg/nstest"
	"tulle/overlay/ready"
	"tulle/overlay/udp"
)

func TestMain(m *testing.M) { nstest.Main(m) }

var loopback = netip.MustParseAddrPort("127.0.0.1:0")

// modes are the ways a socket can work.
var modes = []struct {
	name string
	opts udp.Options
}{
	{"offloads", udp.Options{}},
	{"no segmentation", udp.Options{NoSegmentation: true}},
	{"no GRO", udp.Options{NoGRO: true}},
	{"neither", udp.Options{NoSegmentation: true, NoGRO: true}},
	{"in a set", udp.Options{Set: set}},
}

// set is where the sockets of one mode wait.
var set = func() *ready.Set {
	s, err := ready.New(0, 1)
	if err != nil {
		panic(err)
	}
	return s
}()

func listen(t testing.TB, addr netip.AddrPort, opts udp.Options) *udp.Socket {
	t.Helper()
	s, err := udp.Listen(addr, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func newBatch(n int) []udp.Message {
	batch := make([]udp.Message, n)
	for i := range batch {
		batch[i].Buf = make([]byte, 65535)
	}
	return batch
}

// collect receives until n datagrams are there.
func collect(t testing.TB, s udp.Conn, from netip.AddrPort, n int) (datagrams [][]byte, calls int) {
	t.Helper()
	batch := newBatch(8)
	for len(datagrams) < n {
		got, err := s.Receive(batch)
		if err != nil {
			t.Fatal(err)
		}
		calls += got
		for _, m := range batch[:got] {
			if m.From != from {
				t.Errorf("from %s, want %s", m.From, from)
			}
			b := m.Buf[:m.N]
			for first := true; first || len(b) > 0; first = false {
				k := min(m.Segment, len(b))
				datagrams = append(datagrams, bytes.Clone(b[:k]))
				b = b[k:]
			}
		}
	}
	return datagrams, calls
}

func TestSendAndReceive(t *testing.T) {
	pattern := make([]byte, udp.MaxSend)
	for i := range pattern {
		pattern[i] = byte(i * 7 >> 3)
	}
	for _, m := range modes {
		for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
			t.Run(m.name+" "+addr, func(t *testing.T) {
				a := listen(t, netip.MustParseAddrPort(addr), m.opts)
				b := listen(t, netip.MustParseAddrPort(addr), m.opts)
				for _, c := range []struct{ length, segment int }{
					{1, 0}, {1400, 0}, {1400, 1400}, {1400, 5000}, {2800, 1400}, {64 * 1000, 1000}, {64*900 - 1, 900},
					{46*1398 + 3, 1398}, {65000, 1422}, {9000, 3000}, {64, 1}, {0, 0},
				} {
					p := pattern[:c.length]
					if err := a.Send(b.Local(), p, c.segment); err != nil {
						t.Fatalf("%+v: %v", c, err)
					}
					var want [][]byte
					size := c.segment
					if size <= 0 || size > len(p) {
						size = len(p)
					}
					for rest := p; len(want) == 0 || len(rest) > 0; rest = rest[min(size, len(rest)):] {
						want = append(want, rest[:min(size, len(rest))])
					}
					got, calls := collect(t, b, a.Local(), len(want))
					if len(got) != len(want) {
						t.Fatalf("%+v: %d datagrams, want %d", c, len(got), len(want))
					}
					for i := range want {
						if !bytes.Equal(got[i], want[i]) {
							t.Fatalf("%+v: datagram %d has %d bytes, want %d", c, i, len(got[i]), len(want[i]))
						}
					}
					if m.opts == (udp.Options{}) && b.Features().GRO && a.Features().Segmentation && c.length == 65000 && calls != 1 {
						t.Errorf("%+v: received in %d messages", c, calls)
					}
				}
			})
		}
	}
}

func TestSendRefuses(t *testing.T) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			s, sink := listen(t, loopback, m.opts), listen(t, loopback, m.opts)
			for _, c := range []struct {
				name            string
				to              netip.AddrPort
				length, segment int
				want            error
			}{
				{"65 segments", sink.Local(), 650, 10, udp.ErrTooMany},
				{"65,001 bytes of segments", sink.Local(), udp.MaxSend + 1, 2000, udp.ErrTooMany},
				{"a datagram above IPv4's", sink.Local(), 65508, 0, udp.ErrMessageSize},
				{"port 0", netip.MustParseAddrPort("127.0.0.1:0"), 20, 10, unix.EINVAL},
				{"the other family", netip.MustParseAddrPort("[::1]:9"), 20, 10, unix.EAFNOSUPPORT},
				{"no address", netip.AddrPort{}, 20, 10, unix.EAFNOSUPPORT},
			} {
				if err := s.Send(c.to, make([]byte, c.length), c.segment); !errors.Is(err, c.want) {
					t.Errorf("%s: got %v, want %v", c.name, err, c.want)
				}
			}
			if s.Features().Segmentation == m.opts.NoSegmentation {
				t.Error("a caller's mistake changed the use of segmentation")
			}
			if err := s.Send(netip.AddrPortFrom(netip.MustParseAddr("::ffff:127.0.0.1"), sink.Local().Port()), []byte("mapped"), 0); err != nil {
				t.Errorf("a mapped address: %v", err)
			}
			if got, _ := collect(t, sink, s.Local(), 1); string(got[0]) != "mapped" {
				t.Errorf("got %q", got[0])
			}
		})
	}
}

// A segment above the path's MTU is told apart; sent alone, it is fragmented:
// DF is not set.
func TestSegmentAboveTheMTU(t *testing.T) {
	ns := nstest.New(t)
	var s, sink *udp.Socket
	if err := ns.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMTU(lo, 1500); err != nil {
			return err
		}
		if s, err = udp.Listen(loopback, udp.Options{}); err != nil {
			return err
		}
		t.Cleanup(func() { s.Close() })
		if sink, err = udp.Listen(loopback, udp.Options{}); err != nil {
			return err
		}
		t.Cleanup(func() { sink.Close() })
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if !s.Features().Segmentation {
		nstest.Skip(t, "this kernel has no UDP_SEGMENT")
	}
	if err := s.Send(sink.Local(), make([]byte, 4*1473), 1473); !errors.Is(err, udp.ErrMessageSize) {
		t.Errorf("segments of 1473 bytes: %v", err)
	}
	if err := s.Send(sink.Local(), make([]byte, 4*1472), 1472); err != nil {
		t.Errorf("segments of 1472 bytes: %v", err)
	}
	if err := s.Send(sink.Local(), make([]byte, 4000), 0); err != nil {
		t.Errorf("4000 bytes alone: %v", err)
	}
	got, _ := collect(t, sink, s.Local(), 5)
	if len(got[3]) != 1472 || len(got[4]) != 4000 {
		t.Errorf("got datagrams of %d and %d bytes", len(got[3]), len(got[4]))
	}
	if !s.Features().Segmentation {
		t.Error("a small path turned segmentation off")
	}
}

func TestReceiveTakesWhatIsThere(t *testing.T) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			sink := listen(t, loopback, m.opts)
			var from []*udp.Socket
			for range 5 {
				s := listen(t, loopback, m.opts)
				if err := s.Send(sink.Local(), []byte("x"), 0); err != nil {
					t.Fatal(err)
				}
				from = append(from, s)
			}
			batch := newBatch(3)
			var got []netip.AddrPort
			for len(got) < 5 {
				n, err := sink.Receive(batch)
				if err != nil {
					t.Fatal(err)
				}
				for _, m := range batch[:n] {
					got = append(got, m.From)
				}
			}
			for i, s := range from {
				if got[i] != s.Local() {
					t.Errorf("message %d from %s, want %s", i, got[i], s.Local())
				}
			}
			if _, err := sink.Receive(nil); err == nil {
				t.Error("an empty batch was waited for")
			}
		})
	}
}

func TestClose(t *testing.T) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) { testClose(t, m.opts) })
	}
}

func testClose(t *testing.T, opts udp.Options) {
	before := runtime.NumGoroutine()
	s := listen(t, loopback, opts)
	failed := make(chan error)
	go func() {
		_, err := s.Receive(newBatch(1))
		failed <- err
	}()
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := <-failed; !errors.Is(err, udp.ErrClosed) {
		t.Errorf("receive: %v", err)
	}
	if err := s.Send(s.Local(), []byte("x"), 0); !errors.Is(err, udp.ErrClosed) {
		t.Errorf("send: %v", err)
	}
	if _, err := s.Receive(newBatch(1)); !errors.Is(err, udp.ErrClosed) {
		t.Errorf("receive again: %v", err)
	}
	// The receiver's may still be on its way out.
	for begun := time.Now(); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Since(begun) > 10*time.Second {
			t.Fatalf("%d goroutines, before %d", runtime.NumGoroutine(), before)
		}
	}
}

func TestListenRefuses(t *testing.T) {
	s := listen(t, loopback, udp.Options{})
	if _, err := udp.Listen(s.Local(), udp.Options{}); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a bound address: %v", err)
	}
	if f := s.Features(); f.ReceiveBuffer <= 0 || f.SendBuffer <= 0 {
		t.Errorf("buffers %d, %d", f.ReceiveBuffer, f.SendBuffer)
	}
}

// Any number of senders at a time.
func TestSendersTogether(t *testing.T) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			s, sink := listen(t, loopback, m.opts), listen(t, loopback, m.opts)
			const senders, each = 4, 50
			var wg sync.WaitGroup
			for i := range senders {
				wg.Go(func() {
					p := bytes.Repeat([]byte{byte(i)}, 5*100)
					for range each {
						if err := s.Send(sink.Local(), p, 100); err != nil {
							t.Error(err)
						}
					}
				})
			}
			got, _ := collect(t, sink, s.Local(), senders*each*5)
			wg.Wait()
			count := map[byte]int{}
			for _, d := range got {
				if len(d) != 100 || bytes.Count(d, d[:1]) != 100 {
					t.Fatalf("a mixed datagram of %d bytes", len(d))
				}
				count[d[0]]++
			}
			for i := range senders {
				if count[byte(i)] != each*5 {
					t.Errorf("sender %d: %d datagrams, want %d", i, count[byte(i)], each*5)
				}
			}
		})
	}
}

func TestNoAllocations(t *testing.T) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			var a, b udp.Conn = listen(t, loopback, m.opts), listen(t, loopback, m.opts)
			p := make([]byte, 10*1000)
			batch := newBatch(16)
			to := b.Local()
			if n := testing.AllocsPerRun(200, func() {
				if err := a.Send(to, p, 1000); err != nil {
					t.Fatal(err)
				}
				for left := len(p); left > 0; {
					n, err := b.Receive(batch)
					if err != nil {
						t.Fatal(err)
					}
					for _, m := range batch[:n] {
						left -= m.N
					}
				}
			}); n != 0 && !poolsForget {
				t.Errorf("%v allocations", n)
			}
		})
	}
}

func BenchmarkSendReceive(b *testing.B) {
	for _, m := range modes {
		b.Run(m.name, func(b *testing.B) {
			s, sink := listen(b, loopback, m.opts), listen(b, loopback, m.opts)
			p := make([]byte, 45*1422)
			batch := newBatch(16)
			b.SetBytes(int64(len(p)))
			b.ReportAllocs()
			for b.Loop() {
				if err := s.Send(sink.Local(), p, 1422); err != nil {
					b.Fatal(err)
				}
				for left := len(p); left > 0; {
					n, err := sink.Receive(batch)
					if err != nil {
						b.Fatal(err)
					}
					for _, m := range batch[:n] {
						left -= m.N
					}
				}
			}
		})
	}
}

func ExampleListen() {
	s, err := udp.Listen(netip.MustParseAddrPort("127.0.0.1:0"), udp.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer s.Close()
	fmt.Println(s.Local().Addr())
	// Output: 127.0.0.1
}

// A socket that only sends drops what comes.
func TestSendOnly(t *testing.T) {
	s, sink := listen(t, loopback, udp.Options{SendOnly: true}), listen(t, loopback, udp.Options{})
	for range 3 {
		if err := sink.Send(s.Local(), make([]byte, 1000), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Send(sink.Local(), make([]byte, 2500), 1000); err != nil {
		t.Fatal(err)
	}
	if got, _ := collect(t, sink, s.Local(), 3); len(got[2]) != 500 {
		t.Errorf("the last datagram has %d bytes", len(got[2]))
	}
	if _, err := s.Receive(newBatch(1)); err == nil {
		t.Error("something was received")
	}
}
