package udptest_test

import (
	"errors"
	"net/netip"
	"runtime"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tulle/overlay/udp"
	"tulle/overlay/udp/udptest"
)

var (
	cell1 = netip.MustParseAddrPort("192.0.2.1:4789")
	cell2 = netip.MustParseAddrPort("192.0.2.2:4789")
)

func pair(t *testing.T) (*udptest.Network, udp.Conn, udp.Conn) {
	t.Helper()
	n := udptest.New()
	a, err := n.Listen(cell1)
	if err != nil {
		t.Fatal(err)
	}
	b, err := n.Listen(cell2)
	if err != nil {
		t.Fatal(err)
	}
	return n, a, b
}

func send(t *testing.T, c udp.Conn, to netip.AddrPort, segment int, ps ...string) {
	t.Helper()
	for _, p := range ps {
		if err := c.Send(to, []byte(p), segment); err != nil {
			t.Fatal(err)
		}
	}
}

// receive is one Receive; a message is its datagrams joined with "|".
func receive(t *testing.T, c udp.Conn, messages int) []string {
	t.Helper()
	batch := make([]udp.Message, messages)
	for i := range batch {
		batch[i].Buf = make([]byte, 65535)
	}
	n, err := c.Receive(batch)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, m := range batch[:n] {
		s := ""
		for i := 0; i < m.N; i += m.Segment {
			if i > 0 {
				s += "|"
			}
			s += string(m.Buf[i:min(i+m.Segment, m.N)])
		}
		out = append(out, s)
	}
	return out
}

func TestJoinsAsGRODoes(t *testing.T) {
	n, a, b := pair(t)
	c, err := n.Listen(netip.MustParseAddrPort("192.0.2.3:0"))
	if err != nil {
		t.Fatal(err)
	}
	send(t, a, cell2, 4, "aaaabbbbcc") // the last is shorter and ends a message
	send(t, a, cell2, 0, "dddd", "e", "ffff")
	send(t, c, cell2, 0, "gggg")
	want := []string{"aaaa|bbbb|cc", "dddd|e", "ffff", "gggg"}
	if d := cmp.Diff(want, receive(t, b, 10)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	// What does not fit the batch comes with the next one.
	send(t, a, cell2, 0, "1", "22", "333")
	got := append(append(receive(t, b, 1), receive(t, b, 1)...), receive(t, b, 1)...)
	if d := cmp.Diff([]string{"1", "22", "333"}, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestFates(t *testing.T) {
	n, a, b := pair(t)
	fates := map[byte]udptest.Fate{'d': udptest.Drop, 't': udptest.Duplicate, 'h': udptest.Hold, 'H': udptest.Hold, 'i': udptest.Hold}
	n.SetHook(func(d *udptest.Datagram) udptest.Fate {
		if d.From != cell1 || d.To != cell2 {
			t.Errorf("hook sees %s to %s", d.From, d.To)
		}
		fate := fates[d.Payload[0]]
		d.Payload[0] ^= 0x20
		return fate
	})
	send(t, a, cell2, 1, "adthHib")
	if d := cmp.Diff([]string{"A|T|T|B"}, receive(t, b, 10)); d != "" || n.Held() != 3 || n.Lost() != 1 {
		t.Errorf("held %d, lost %d:\n%s", n.Held(), n.Lost(), d)
	}
	n.Release(2, 0)
	n.Release()
	if d := cmp.Diff([]string{"I|H|h"}, receive(t, b, 10)); d != "" || n.Held() != 0 {
		t.Errorf("released, %d held:\n%s", n.Held(), d)
	}
}

func TestLimitsAndAddresses(t *testing.T) {
	n, a, b := pair(t)
	if _, err := n.Listen(cell1); err == nil {
		t.Error("an address was given twice")
	}
	if err := a.Send(cell2, make([]byte, 65), 1); !errors.Is(err, udp.ErrTooMany) {
		t.Errorf("65 segments: %v", err)
	}
	n.SetMTU(100)
	if err := a.Send(cell2, make([]byte, 202), 101); !errors.Is(err, udp.ErrMessageSize) {
		t.Errorf("above the MTU: %v", err)
	}
	send(t, a, netip.MustParseAddrPort("192.0.2.9:4789"), 0, "nobody")
	if n.Lost() != 1 {
		t.Errorf("lost %d", n.Lost())
	}
	if a.Local() != cell1 {
		t.Errorf("local is %s", a.Local())
	}
	failed := make(chan error)
	go func() {
		_, err := b.Receive(make([]udp.Message, 1))
		failed <- err
	}()
	b.Close()
	b.Close()
	if err := <-failed; !errors.Is(err, udp.ErrClosed) {
		t.Errorf("receive: %v", err)
	}
	if err := b.Send(cell1, []byte("x"), 0); !errors.Is(err, udp.ErrClosed) {
		t.Errorf("send: %v", err)
	}
	again, err := n.Listen(cell2)
	if err != nil {
		t.Fatal(err)
	}
	send(t, a, cell2, 0, "again")
	if got := receive(t, again, 1); !slices.Equal(got, []string{"again"}) {
		t.Errorf("got %v", got)
	}
}

// The network is quiet when a receiver has come back after what it was given last.
func TestQuiet(t *testing.T) {
	n, a, b := pair(t)
	if got, quiet := n.Quiet(); got != 0 || !quiet {
		t.Errorf("at the beginning: %d, %v", got, quiet)
	}
	send(t, a, cell2, 0, "one", "two", "three")
	batch := []udp.Message{{Buf: make([]byte, 65535)}}
	for total := 0; total < len("onetwothree"); total += batch[0].N {
		if got, quiet := n.Quiet(); got != 3 || quiet {
			t.Errorf("after %d bytes: %d, %v", total, got, quiet)
		}
		if _, err := b.Receive(batch); err != nil {
			t.Fatal(err)
		}
	}
	if _, quiet := n.Quiet(); quiet {
		t.Error("quiet while the receiver is still at it")
	}
	ended := make(chan error)
	go func() {
		_, err := b.Receive(batch)
		ended <- err
	}()
	for _, quiet := n.Quiet(); !quiet; _, quiet = n.Quiet() {
		runtime.Gosched()
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, udp.ErrClosed) {
		t.Error(err)
	}
}
