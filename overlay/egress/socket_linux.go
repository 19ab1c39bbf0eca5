package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// socket is a connected socket of the host. It keeps no buffer and no goroutine.
type socket struct {
	f     *os.File
	raw   syscall.RawConn
	local netip.AddrPort
}

// errAgain is what a read or write that would block returns inside of raw's calls.
var errAgain = unix.EAGAIN

// open makes a socket and connects it: a datagram one at once, a stream within
// patience.
func (e *Egress) open(typ, proto int, to netip.AddrPort, patience time.Duration) (*socket, error) {
	domain := unix.AF_INET
	if to.Addr().Is6() {
		domain = unix.AF_INET6
	}
	fd, err := e.opt.Socket(domain, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	s := &socket{f: os.NewFile(uintptr(fd), "egress")}
	if s.raw, err = s.f.SyscallConn(); err != nil {
		return nil, errors.Join(err, s.f.Close())
	}
	if err := s.connect(to, typ, patience); err != nil {
		return nil, errors.Join(err, s.f.Close())
	}
	return s, nil
}

func (s *socket) connect(to netip.AddrPort, typ int, patience time.Duration) error {
	var err error
	if cerr := s.raw.Control(func(fd uintptr) {
		if typ == unix.SOCK_STREAM {
			if err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
				return
			}
			// So that the far end's silent death does not keep a connection for ever.
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 300)
		}
		dst := to
		if dst.Port() == 0 {
			// A ping socket has no ports, but the kernel names no far end without one.
			dst = netip.AddrPortFrom(to.Addr(), 1)
		}
		err = unix.Connect(int(fd), sockaddr(dst))
	}); cerr != nil {
		return cerr
	}
	if errors.Is(err, unix.EINPROGRESS) && s.isConnected() {
		err = nil // a near host has answered already
	}
	if errors.Is(err, unix.EINPROGRESS) {
		if err = s.f.SetWriteDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		err = s.connected()
		if derr := s.f.SetWriteDeadline(time.Time{}); err == nil {
			err = derr
		}
	}
	if err != nil {
		return fmt.Errorf("connect %v: %w", to, err)
	}
	return s.names(to)
}

func (s *socket) isConnected() bool {
	var err error
	cerr := s.raw.Control(func(fd uintptr) { _, err = unix.Getpeername(int(fd)) })
	return cerr == nil && err == nil
}

// connected waits for the end of a connect.
func (s *socket) connected() error {
	var err error
	werr := s.raw.Write(func(fd uintptr) bool {
		var code int
		if code, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); err != nil {
			return true
		}
		if code != 0 {
			err = syscall.Errno(code)
			return true
		}
		if _, perr := unix.Getpeername(int(fd)); perr != nil {
			return false // not yet
		}
		return true
	})
	return errors.Join(werr, err)
}

// names reads both ends off the socket: what it is connected to is what was judged,
// and it is no conversation of this host with itself.
func (s *socket) names(to netip.AddrPort) error {
	var local, peer unix.Sockaddr
	var err error
	if cerr := s.raw.Control(func(fd uintptr) {
		if local, err = unix.Getsockname(int(fd)); err == nil {
			peer, err = unix.Getpeername(int(fd))
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

// write writes all of b, waiting for room.
func (s *socket) write(b []byte) error {
	var err error
	werr := s.raw.Write(func(fd uintptr) bool {
		for len(b) > 0 {
			var n int
			n, err = ignoringEINTR(func() (int, error) { return unix.SendmsgN(int(fd), b, nil, nil, unix.MSG_NOSIGNAL) })
			if errors.Is(err, errAgain) {
				err = nil
				return false
			}
			if err != nil {
				return true
			}
			b = b[n:]
		}
		return true
	})
	return errors.Join(werr, err)
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

// shut ends this end's direction: FIN.
func (s *socket) shut() {
	_ = s.raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_WR) })
}

// abort closes the socket with a RST.
func (s *socket) abort() {
	_ = s.raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	})
	_ = s.f.Close()
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

func fromSockaddr(s unix.Sockaddr) netip.AddrPort {
	switch s := s.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(s.Addr), uint16(s.Port))
	case *unix.SockaddrInet6:
		at := netip.AddrFrom16(s.Addr).Unmap()
		if s.ZoneId != 0 { // a neighbour that is told apart by its link alone
			at = at.WithZone(strconv.FormatUint(uint64(s.ZoneId), 10))
		}
		return netip.AddrPortFrom(at, uint16(s.Port))
	}
	return netip.AddrPort{}
}
