package mint

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Check reports what is wrong with sockets that somebody else made: kind, port,
// state, or a network namespace that is not one and the same, or is the calling
// process's own: whoever minted there would open doors of the host.
func (s *Sockets) Check(port uint16) error {
	for _, f := range s.Files() {
		if err := checkKind(f, f == s.Public); err != nil {
			return fmt.Errorf("%s socket: %w", f.Name(), err)
		}
	}
	at, err := onFD(s.Public, localPort)
	if err != nil || at != int(port) {
		return fmt.Errorf("public socket is not bound to port %d", port)
	}
	listening, err := onFD(s.Private, func(fd int) (int, error) {
		return unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	})
	if err != nil || listening == 0 {
		return errors.New("private socket does not listen")
	}
	if at, err := onFD(s.Private, localAddr); err != nil || at.Addr != loopback.As4() {
		return errors.New("private socket does not listen on 127.0.0.1")
	}
	return s.checkNamespace()
}

// checkKind: the public socket may be of either family.
func checkKind(f *os.File, either bool) error {
	_, err := onFD(f, func(fd int) (any, error) {
		for _, want := range []struct {
			option, value int
			text          string
		}{
			{unix.SO_DOMAIN, unix.AF_INET, "no IPv4 socket"},
			{unix.SO_TYPE, unix.SOCK_STREAM, "no stream socket"},
			{unix.SO_PROTOCOL, unix.IPPROTO_TCP, "no TCP socket"},
		} {
			got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, want.option)
			if either && want.option == unix.SO_DOMAIN && got == unix.AF_INET6 {
				continue
			}
			if err != nil || got != want.value {
				return nil, errors.New(want.text)
			}
		}
		return nil, nil
	})
	return err
}

func (s *Sockets) checkNamespace() error {
	var first uint64
	for i, f := range s.Files() {
		cookie, err := onFD(f, func(fd int) (uint64, error) { return unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE) })
		if errors.Is(err, unix.ENOPROTOOPT) {
			return nil // before Linux 5.14: not to be known
		}
		if err != nil {
			return fmt.Errorf("network namespace of the sockets: %w", err)
		}
		if i == 0 {
			first = cookie
		}
		if cookie != first {
			return errors.New("the sockets are of different network namespaces")
		}
	}
	own, err := socket("own")
	if err != nil {
		return err
	}
	defer own.Close()
	cookie, err := onFD(own, func(fd int) (uint64, error) { return unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE) })
	if err != nil {
		return err
	}
	if cookie == first {
		return errors.New("the sockets are of the daemon's own network namespace")
	}
	return nil
}

// Same reports whether both are the same sockets, whatever the descriptors.
func (s *Sockets) Same(o *Sockets) bool {
	if s == nil || o == nil {
		return s == o
	}
	mine, theirs := s.Files(), o.Files()
	for i := range mine {
		a, aerr := cookie(mine[i])
		b, berr := cookie(theirs[i])
		if aerr != nil || berr != nil || a != b {
			return false
		}
	}
	return true
}

func cookie(f *os.File) (uint64, error) {
	return onFD(f, func(fd int) (uint64, error) { return unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE) })
}

func localPort(fd int) (int, error) {
	sa, err := unix.Getsockname(fd)
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return sa.Port, nil
	case *unix.SockaddrInet6:
		return sa.Port, nil
	}
	return 0, errors.Join(err, errors.New("not a TCP socket"))
}

func localAddr(fd int) (*unix.SockaddrInet4, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return nil, err
	}
	v4, ok := sa.(*unix.SockaddrInet4)
	if !ok {
		return nil, errors.New("not an IPv4 socket")
	}
	return v4, nil
}
