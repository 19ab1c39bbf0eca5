package egress

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What a far end says before the line carries is not heard: its reset would end what
// has not begun, and what began then would never end. It is there when the line starts.
func TestNothingIsHeardBeforeTheLineStarts(t *testing.T) {
	poller, err := newPoller()
	if err != nil {
		t.Fatal(err)
	}
	defer poller.close()
	e := &Egress{poller: poller}
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	// A stream that is watched since before it was connected, as one to a host that is
	// not near, and its far end.
	dial := func() (*stream, net.Conn) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		s := e.newStream(fd)
		t.Cleanup(s.close)
		if err := s.connect(listener.Addr().(*net.TCPAddr).AddrPort(), time.Minute); err != nil {
			t.Fatal(err)
		}
		if err := poller.watch(s, fd, streamBoth); err != nil {
			t.Fatal(err)
		}
		<-s.room
		far, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { far.Close() })
		return s, far
	}
	s, far := dial()
	l := e.newLine(nil, s, nil)
	l.inward.take() // so that news are noted and nothing is read
	other, otherFar := dial()
	if _, err := far.Write([]byte("too early")); err != nil {
		t.Fatal(err)
	}
	otherFar.(*net.TCPConn).SetLinger(0)
	otherFar.Close()
	<-other.room // news come in their order
	if l.inward.state.Load() == again {
		t.Error("a line that was not started was told of news")
	}
}
