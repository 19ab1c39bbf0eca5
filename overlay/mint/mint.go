package mint

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds one making: all of it happens on the namespace's loopback, so
// only a container that stands in its own way makes it longer.
const patience = time.Second

// foreign is how many connections of others at the private listener are thrown
// away in one making.
const foreign = 64

// Mint makes sockets. New takes the descriptors over.
type Mint struct {
	mu      sync.Mutex // held over a making
	s       *Sockets
	private *unix.SockaddrInet4
}

// New makes a Mint of sockets that somebody has checked.
func New(s *Sockets) (*Mint, error) {
	at, err := onFD(s.Private, localAddr)
	if err != nil {
		return nil, fmt.Errorf("private listener: %w", err)
	}
	return &Mint{s: s, private: at}, nil
}

// Close closes the descriptors.
func (m *Mint) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.s.Close()
}

// Sockets are the Mint's own, to compare or to close its public port.
func (m *Mint) Sockets() *Sockets { return m.s }

// socket makes one, non-blocking and close-on-exec.
func (m *Mint) socket() (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return onFD(m.s.Spare, func(spare int) (int, error) {
		return onFD(m.s.Private, func(private int) (int, error) { return m.twin(spare, private) })
	})
}

func (m *Mint) twin(spare, private int) (int, error) {
	deadline := time.Now().Add(patience)
	// Whatever a process before us was at.
	if err := disconnect(spare); err != nil {
		return -1, fmt.Errorf("spare socket: %w", err)
	}
	err := unix.Connect(spare, m.private)
	if errors.Is(err, unix.EINPROGRESS) {
		err = await(spare, unix.POLLOUT, deadline)
	}
	if err != nil {
		return -1, fmt.Errorf("connect the spare socket: %w", err)
	}
	own, err := localAddr(spare)
	if err != nil {
		return -1, err
	}
	for range foreign {
		fd, from, err := unix.Accept4(private, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EAGAIN) {
			if err = await(private, unix.POLLIN, deadline); err == nil {
				continue
			}
		}
		if errors.Is(err, unix.ECONNABORTED) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return -1, errors.Join(fmt.Errorf("accept the spare socket: %w", err), disconnect(spare))
		}
		if v4, ok := from.(*unix.SockaddrInet4); !ok || *v4 != *own {
			_ = unix.Close(fd) // somebody else's
			continue
		}
		if err := errors.Join(disconnect(fd), disconnect(spare)); err != nil {
			return -1, errors.Join(err, unix.Close(fd))
		}
		return fd, nil
	}
	return -1, errors.Join(errors.New("too many connections to the private listener"), disconnect(spare))
}

// disconnect is connect with AF_UNSPEC (connect(2)): the socket is as new. The
// library has no address of that family.
func disconnect(fd int) error {
	return connectUnspec(fd)
}

func await(fd int, events int16, deadline time.Time) error {
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return os.ErrDeadlineExceeded
		}
		p := []unix.PollFd{{Fd: int32(fd), Events: events}}
		n, err := unix.Poll(p, int(left.Milliseconds())+1)
		switch {
		case errors.Is(err, unix.EINTR) || err == nil && n == 0:
		case err != nil:
			return err
		case events == unix.POLLOUT:
			return pending(fd)
		default:
			return nil
		}
	}
}

// pending is a socket's own error, SO_ERROR.
func pending(fd int) error {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && n != 0 {
		err = unix.Errno(n)
	}
	return err
}

// Dial connects from inside the namespace. Waiting is the runtime's poller's, so
// that an app that does not answer holds no thread.
func (m *Mint) Dial(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
	fd, err := m.socket()
	if err != nil {
		return nil, fmt.Errorf("make a socket in the container's namespace: %w", err)
	}
	c, err := dial(ctx, fd, to)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: err}
	}
	return c, nil
}

// dial takes fd over.
func dial(ctx context.Context, fd int, to netip.AddrPort) (*net.TCPConn, error) {
	f := os.NewFile(uintptr(fd), "minted")
	defer f.Close() // FileConn has a duplicate
	err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return nil, os.NewSyscallError("connect", err)
	}
	fc, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	c, ok := fc.(*net.TCPConn)
	if !ok {
		return nil, errors.Join(errors.New("not a TCP socket"), fc.Close())
	}
	if err := connected(ctx, c); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, c.SetNoDelay(true)
}

// connected waits until the connection is there.
func connected(ctx context.Context, c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	unhook := context.AfterFunc(ctx, func() { _ = c.SetWriteDeadline(time.Unix(1, 0)) })
	defer unhook()
	var state error
	err = raw.Write(func(fd uintptr) bool {
		if state = pending(int(fd)); state != nil {
			return true
		}
		_, err := unix.Getpeername(int(fd))
		return err == nil // ENOTCONN: still under way
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if state != nil {
		return os.NewSyscallError("connect", state)
	}
	return err
}

// Listen makes the public port listen, or go on.
func (m *Mint) Listen() (*net.TCPListener, error) {
	if _, err := onFD(m.s.Public, func(fd int) (any, error) { return nil, unix.Listen(fd, unix.SOMAXCONN) }); err != nil {
		if errors.Is(err, unix.EADDRINUSE) {
			err = ErrPortTaken
		}
		return nil, os.NewSyscallError("listen", err)
	}
	l, err := net.FileListener(m.s.Public)
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

// StopListening refuses what waits at the public port and what comes, until
// somebody listens again. A port on which nobody listens stays so.
func (s *Sockets) StopListening() error {
	_, err := onFD(s.Public, func(fd int) (any, error) {
		// On a socket that does not listen, shutdown(2) fails and yet leaves its mark:
		// what is accepted later is born with both halves closed.
		listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		if err != nil || listening == 0 {
			return nil, err
		}
		return nil, unix.Shutdown(fd, unix.SHUT_RDWR)
	})
	return err
}
