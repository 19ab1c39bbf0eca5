package mint

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Sockets are what Create made, or what is left of it somewhere else: three
// descriptors, closed by Close.
type Sockets struct {
	Public  *os.File // bound to the public port of every address of both families, not listening
	Private *os.File // listens on 127.0.0.1
	Spare   *os.File
}

// ErrPortTaken: something in the namespace has the public port already.
var ErrPortTaken = errors.New("the port is in use in the container's network namespace")

// privateBacklog is more than the one connection that is ever waiting.
const privateBacklog = 16

// Create makes the sockets in the calling thread's network namespace, where lo
// must be up. Descriptors are close-on-exec and non-blocking.
func Create(port uint16) (*Sockets, error) {
	var s Sockets
	err := func() (err error) {
		if s.Public, err = public(port); err != nil {
			return err
		}
		if s.Private, err = socket("private"); err != nil {
			return err
		}
		if err := unix.Bind(int(s.Private.Fd()), &unix.SockaddrInet4{Addr: loopback.As4()}); err != nil {
			return fmt.Errorf("private listener: %w", err)
		}
		if err := unix.Listen(int(s.Private.Fd()), privateBacklog); err != nil {
			return fmt.Errorf("private listener: %w", err)
		}
		s.Spare, err = socket("spare")
		return err
	}()
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return &s, nil
}

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// public binds the port of every address: by one socket of IPv6 that takes IPv4 too,
// or by one of IPv4 where this kernel has nothing else.
func public(port uint16) (*os.File, error) {
	f, err := open("public", unix.AF_INET6)
	any := unix.Sockaddr(&unix.SockaddrInet6{Port: int(port)})
	if err == nil {
		err = unix.SetsockoptInt(int(f.Fd()), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0)
	} else if errors.Is(err, unix.EAFNOSUPPORT) {
		any = &unix.SockaddrInet4{Port: int(port)}
		f, err = socket("public")
	}
	if err == nil {
		// So that it can listen again while connections of before are there.
		err = unix.SetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if err == nil {
		err = unix.Bind(int(f.Fd()), any)
	}
	if errors.Is(err, unix.EADDRINUSE) {
		err = ErrPortTaken
	}
	if err != nil {
		err = fmt.Errorf("port %d: %w", port, err)
		if f != nil {
			err = errors.Join(err, f.Close())
		}
		return nil, err
	}
	return f, nil
}

// socket's file is not in the runtime's poller: its kind is a blocking one, its
// descriptor is not.
func socket(name string) (*os.File, error) { return open(name, unix.AF_INET) }

func open(name string, family int) (*os.File, error) {
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Files are the descriptors in the order that they travel in.
func (s *Sockets) Files() []*os.File { return []*os.File{s.Public, s.Private, s.Spare} }

// FromFiles is the reverse of Files; the files are then the Sockets'.
func FromFiles(f []*os.File) *Sockets { return &Sockets{Public: f[0], Private: f[1], Spare: f[2]} }

// Close closes what is there; a nil Sockets has nothing.
func (s *Sockets) Close() error {
	if s == nil {
		return nil
	}
	var err error
	for _, f := range s.Files() {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return err
}

// Duplicate is a second set of descriptors of the same sockets.
func (s *Sockets) Duplicate() (*Sockets, error) {
	var files []*os.File
	for _, f := range s.Files() {
		fd, err := onFD(f, func(fd int) (int, error) { return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3) })
		if err != nil {
			for _, made := range files {
				err = errors.Join(err, made.Close())
			}
			return nil, fmt.Errorf("duplicate descriptor: %w", err)
		}
		files = append(files, os.NewFile(uintptr(fd), f.Name()))
	}
	return FromFiles(files), nil
}

// onFD calls f with the descriptor, without what os.File.Fd does to its mode.
func onFD[T any](file *os.File, f func(fd int) (T, error)) (got T, err error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return got, err
	}
	if cerr := raw.Control(func(fd uintptr) { got, err = f(int(fd)) }); cerr != nil {
		return got, cerr
	}
	return got, err
}
