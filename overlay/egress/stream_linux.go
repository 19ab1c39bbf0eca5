package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stream is a connected TCP socket of the host. It keeps no buffer and no goroutine.
type stream struct {
	p     *poller
	id    uint64 // of the poller's
	local netip.AddrPort
	// line is told by the poller when there is something to read, an end or an error.
	line atomic.Pointer[line]

	// last: the far end has ended, or something else is to be read that a short read
	// does not tell of. Nothing is but what the next read says.
	last atomic.Bool
	room chan struct{} // has one when there may be room again
	over chan struct{} // closed with the socket

	mu sync.RWMutex // guards what follows: a closed descriptor is another's
	fd int          // -1: closed

	// Of whoever sends, one at a time: how often, and whether room is told of.
	sends int
	told  bool
}

const (
	streamIn   = unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLPRI
	streamBoth = streamIn | unix.EPOLLOUT
)

func (e *Egress) newStream(fd int) *stream {
	return &stream{p: e.poller, fd: fd, room: make(chan struct{}, 1), over: make(chan struct{})}
}

// dial opens a stream within patience.
func (e *Egress) dial(to netip.AddrPort, patience time.Duration) (*stream, error) {
	domain := unix.AF_INET
	if to.Addr().Is6() {
		domain = unix.AF_INET6
	}
	fd, err := e.opt.Socket(domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	s := e.newStream(fd)
	if err := s.connect(to, patience); err != nil {
		s.close()
		return nil, fmt.Errorf("connect %v: %w", to, err)
	}
	return s, nil
}

// connect connects, and reads both ends off the socket: what it is connected to is
// what was judged.
func (s *stream) connect(to netip.AddrPort, patience time.Duration) error {
	err := unix.Connect(s.fd, sockaddr(to))
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return err
	}
	peer, err := syscall.Getpeername(s.fd) // a near host has answered already
	if errors.Is(err, unix.ENOTCONN) {
		if err = s.connected(patience); err == nil {
			peer, err = syscall.Getpeername(s.fd)
		}
	}
	if err != nil {
		return err
	}
	if at := fromSockaddr(peer); at != to {
		return fmt.Errorf("is connected to %v", at)
	}
	local, err := syscall.Getsockname(s.fd)
	if err != nil {
		return err
	}
	s.local = fromSockaddr(local)
	return nil
}

// connected waits for the end of a connect.
func (s *stream) connected(patience time.Duration) error {
	failed := func() error {
		code, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && code != 0 {
			err = syscall.Errno(code)
		}
		return err
	}
	if err := failed(); err != nil {
		return err // a near host has refused already
	}
	if err := s.p.watch(s, s.fd, streamBoth); err != nil {
		return err
	}
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	select {
	case <-s.room:
	case <-timeout.C:
		return unix.ETIMEDOUT
	}
	return failed()
}

// watch begins to tell the line, of what is there already too.
func (s *stream) watch() error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	switch {
	case s.fd < 0:
		return unix.EBADF
	case s.id != 0:
		return s.p.change(s, s.fd, streamIn)
	}
	return s.p.watch(s, s.fd, streamIn)
}

// news is called by the poller.
func (s *stream) news(events uint32) {
	if events&(unix.EPOLLOUT|unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		select {
		case s.room <- struct{}{}:
		default:
		}
	}
	if events&(unix.EPOLLRDHUP|unix.EPOLLPRI|unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		s.last.Store(true)
	}
	if l := s.line.Load(); l != nil && events&^unix.EPOLLOUT != 0 {
		l.arrived()
	}
}

// toItself reports whether the far end is an address of this host.
func (s *stream) toItself(to netip.AddrPort) bool { return s.local.Addr() == to.Addr() }

// read reads what is there: EAGAIN if there is nothing, 0 at the end. more is false if
// nothing is left for now, and the poller will tell when there is.
func (s *stream) read(b []byte) (n int, more bool, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fd < 0 {
		return 0, false, unix.EBADF
	}
	n, err = ignoringEINTR(func() (int, error) { return unix.Read(s.fd, b) })
	// An event that comes later has a call of readable of its own.
	return max(n, 0), n == len(b) || s.last.Load(), err
}

// write writes all of b, waiting for room.
func (s *stream) write(b []byte) error {
	for len(b) > 0 {
		n, err := s.send(b)
		b = b[n:]
		if errors.Is(err, unix.EAGAIN) {
			select {
			case <-s.room:
				continue
			case <-s.over:
				return unix.EBADF
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *stream) send(b []byte) (int, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fd < 0 {
		return 0, unix.EBADF
	}
	// Nagle's delay holds nothing back while nothing small is on its way: a connection
	// that says one thing does without this.
	if s.sends++; s.sends == 2 {
		_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	send := func() (int, error) {
		return ignoringEINTR(func() (int, error) { return unix.SendmsgN(s.fd, b, nil, nil, unix.MSG_NOSIGNAL) })
	}
	n, err := send()
	if errors.Is(err, unix.EAGAIN) && !s.told {
		// From now on room is told of, that which came meanwhile too.
		s.told = true
		if cerr := s.p.change(s, s.fd, streamBoth); cerr != nil {
			return 0, cerr
		}
	}
	return max(n, 0), err
}

// keep lets the kernel ask, now and then, whether the far end is still there: its
// silent death does not keep a connection for ever.
func (s *stream) keep() {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fd >= 0 {
		_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
		_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 300)
	}
}

// shut ends this end's direction: FIN.
func (s *stream) shut() {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fd >= 0 {
		_ = unix.Shutdown(s.fd, unix.SHUT_WR)
	}
}

// abort closes the socket with a RST.
func (s *stream) abort() { s.end(true) }

func (s *stream) close() { s.end(false) }

func (s *stream) end(reset bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return
	}
	if s.id != 0 {
		s.p.forget(s)
	}
	if reset {
		_ = unix.SetsockoptLinger(s.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	_ = unix.Close(s.fd)
	s.fd = -1
	close(s.over)
}
