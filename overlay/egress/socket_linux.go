package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// socket is a connected datagram socket of the host. It keeps no buffer and no
// goroutine.
type socket struct {
	f     *os.File
	raw   syscall.RawConn
	local netip.AddrPort
}

// errAgain is what a read or write that would block returns inside of raw's calls.
var errAgain = unix.EAGAIN

// open makes a socket of the protocol, UDP or a ping socket's, and connects it.
func (e *Egress) open(proto int, to netip.AddrPort) (*socket, error) {
	domain := unix.AF_INET
	if to.Addr().Is6() {
		domain = unix.AF_INET6
	}
	fd, err := e.opt.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	s := &socket{f: os.NewFile(uintptr(fd), "egress")}
	if s.raw, err = s.f.SyscallConn(); err != nil {
		return nil, errors.Join(err, s.f.Close())
	}
	if err := s.connect(to); err != nil {
		return nil, errors.Join(err, s.f.Close())
	}
	return s, nil
}

func (s *socket) connect(to netip.AddrPort) error {
	dst := to
	if dst.Port() == 0 {
		// A ping socket has no ports, but the kernel names no far end without one.
		dst = netip.AddrPortFrom(to.Addr(), 1)
	}
	var err error
	if cerr := s.raw.Control(func(fd uintptr) { err = unix.Connect(int(fd), sockaddr(dst)) }); cerr != nil {
		return cerr
	}
	if err != nil {
		return fmt.Errorf("connect %v: %w", to, err)
	}
	return s.names(to)
}

// names reads both ends off the socket: what it is connected to is what was judged,
// and it is no conversation of this host with itself.
func (s *socket) names(to netip.AddrPort) error {
	var local, peer syscall.Sockaddr
	var err error
	if cerr := s.raw.Control(func(fd uintptr) {
		if local, err = syscall.Getsockname(int(fd)); err == nil {
			peer, err = syscall.Getpeername(int(fd))
		}
	}); cerr != nil {
		return cerr
	}
	if err != nil {
		return fmt.Errorf("ends of the socket to %v: %w", to, err)
	}
	s.local = fromSockaddr(local)
	if at := fromSockaddr(peer); at.Addr() != to.Addr() || to.Port() != 0 && at.Port() != to.Port() {
		return fmt.Errorf("socket to %v is connected to %v", to, at)
	}
	return nil
}

// toItself reports whether the far end is an address of this host.
func (s *socket) toItself(to netip.AddrPort) bool { return s.local.Addr() == to.Addr() }

// read waits for data and reads it into a buffer that get gives when there is some.
// n is 0 at the end.
func (s *socket) read(get func() []byte, put func([]byte)) (b []byte, n int, err error) {
	rerr := s.raw.Read(func(fd uintptr) bool {
		b = get()
		n, err = ignoringEINTR(func() (int, error) { return unix.Read(int(fd), b) })
		if errors.Is(err, errAgain) {
			put(b)
			b = nil
			return false
		}
		return true
	})
	if err == nil {
		err = rerr
	}
	return b, max(n, 0), err
}

// send sends one datagram, or loses it where there is no room.
func (s *socket) send(b []byte) error {
	var err error
	if cerr := s.raw.Control(func(fd uintptr) {
		_, err = ignoringEINTR(func() (int, error) { return unix.SendmsgN(int(fd), b, nil, nil, unix.MSG_NOSIGNAL) })
	}); cerr != nil {
		return cerr
	}
	if errors.Is(err, errAgain) {
		return nil
	}
	return err
}

func (s *socket) close() { _ = s.f.Close() }

func ignoringEINTR(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	zone, _ := strconv.ParseUint(a.Addr().Zone(), 10, 32) // none: 0
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16(), ZoneId: uint32(zone)}
}

// fromSockaddr reads the standard library's: x/sys asks the kernel for the protocol of
// every socket whose address it reads, a call for nothing.
func fromSockaddr(s syscall.Sockaddr) netip.AddrPort {
	switch s := s.(type) {
	case *syscall.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(s.Addr), uint16(s.Port))
	case *syscall.SockaddrInet6:
		at := netip.AddrFrom16(s.Addr).Unmap()
		if s.ZoneId != 0 { // a neighbour that is told apart by its link alone
			at = at.WithZone(strconv.FormatUint(uint64(s.ZoneId), 10))
		}
		return netip.AddrPortFrom(at, uint16(s.Port))
	}
	return netip.AddrPort{}
}
