package traffic

import (
	"fmt"
	"net/netip"
	"runtime"

	"golang.org/x/sys/unix"
)

// dial opens a blocking TCP connection.
func dial(to netip.Addr) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		unix.Close(fd)
		return -1, err
	}
	setCongestion(fd)
	for {
		err = unix.Connect(fd, &unix.SockaddrInet4{Port: Port, Addr: to.As4()})
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("connect to %s: %w", to, err)
	}
	return fd, nil
}

// congestion is the congestion control of all streams. It is what Linux has
// unless told otherwise; where a host's default is another (bbr, which paces by
// timers), it would be that, and not the path, which is measured.
const congestion = "cubic"

// setCongestion does so if this user may: others than root may have only what
// net.ipv4.tcp_allowed_congestion_control lists.
func setCongestion(fd int) {
	_ = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, congestion) // Congestion tells
}

// Congestion is the congestion control that streams of this user have.
func Congestion() string {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "unknown"
	}
	defer unix.Close(fd)
	setCongestion(fd)
	name, err := unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	if err != nil {
		return "unknown"
	}
	return name
}

// abort closes a connection by RST, so that no port waits.
func abort(fd int) {
	// Without it the connection ends more slowly, that is all.
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	unix.Close(fd)
}

// onThread runs f on a thread of its own, which may block in the kernel without
// the scheduler's knowledge.
func onThread[T any](f func() (T, error)) (T, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return f()
}

// read and write block, and are seen by the scheduler.
func read(fd int, b []byte) (int, error) {
	for {
		n, err := unix.Read(fd, b)
		if err != unix.EINTR {
			return n, err
		}
	}
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err != nil && err != unix.EINTR {
			return err
		}
		b = b[max(n, 0):]
	}
	return nil
}
