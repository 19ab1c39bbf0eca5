package udp

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

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
