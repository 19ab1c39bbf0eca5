package udp

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"tulle/overlay/ready"
)

// Where there is no room in the socket's buffer, what is left is sent as soon as there
// is, whoever waits for that.
func TestSendWaitsForRoom(t *testing.T) {
	for _, set := range []bool{false, true} {
		var opts Options
		if set {
			s, err := ready.New(0, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			opts.Set = s
		}
		s, err := Listen(netip.MustParseAddrPort("127.0.0.1:0"), opts)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		op := sends.Get().(*send)
		name, _ := op.setName(s.Local(), false)
		op.prepareOne(make([]byte, 100), 100, name)
		op.errno = unix.EAGAIN // as if it had been tried
		if err := s.waitToSend(op); err != nil || op.errno != 0 {
			t.Fatalf("set %v: %v, %v", set, err, op.errno)
		}
		batch := []Message{{Buf: make([]byte, 65535)}}
		if n, err := s.Receive(batch); err != nil || n != 1 || batch[0].N != 100 {
			t.Errorf("set %v: received %d of %d bytes: %v", set, n, batch[0].N, err)
		}
	}
}

// Where the kernel refuses to segment, the same call goes on with sendmmsg, and
// no further one tries. A socket that sends no checksums is such a place.
func TestSegmentationIsTurnedOffByASendError(t *testing.T) {
	s, err := Listen(netip.MustParseAddrPort("127.0.0.1:0"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if !s.Features().Segmentation {
		t.Log("this kernel has no UDP_SEGMENT: there is nothing to turn off")
	}
	if e := s.raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_NO_CHECK, 1)
	}); e != nil || err != nil {
		t.Fatal(e, err)
	}
	for range 2 {
		if err := s.Send(s.Local(), make([]byte, 2500), 1000); err != nil {
			t.Fatal(err)
		}
		if s.Features().Segmentation {
			t.Error("segmentation is still on")
		}
		batch := []Message{{Buf: make([]byte, 65535)}}
		for total := 0; total < 2500; total += batch[0].N {
			if _, err := s.Receive(batch); err != nil {
				t.Fatal(err)
			}
			if m := batch[0]; m.Segment != min(1000, 2500-total) {
				t.Errorf("datagrams of %d bytes at byte %d", m.Segment, total)
			}
		}
	}
}
