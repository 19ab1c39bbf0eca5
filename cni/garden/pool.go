package garden

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"
)

// maxPort is where a pool ends, whatever its configuration says.
const maxPort = 65535

var errExhausted = errors.New("acquire port: port pool exhausted")

// acquired is the state: each container's host ports, by handle.
type acquired map[string][]uint32

// take gives the handle the lowest port of the pool that nobody has. busy says which
// are a process's of this host.
func (a acquired) take(handle string, start, total uint32, busy func(port uint16) bool) (uint32, error) {
	used := map[uint32]bool{}
	for _, ports := range a {
		for _, p := range ports {
			used[p] = true
		}
	}
	end := min(uint64(start)+uint64(total)-1, maxPort)
	for p := uint64(start); p <= end; p++ {
		if !used[uint32(p)] && !busy(uint16(p)) {
			a[handle] = append(a[handle], uint32(p))
			return uint32(p), nil
		}
	}
	return 0, errExhausted
}

// give takes ports back; without any, all of the handle's.
func (a acquired) give(handle string, ports ...uint32) {
	left := slices.DeleteFunc(a[handle], func(p uint32) bool { return len(ports) == 0 || slices.Contains(ports, p) })
	a[handle] = left
	if len(left) == 0 {
		delete(a, handle)
	}
}

// bound reports whether a forward of the TCP port could not be bound. A container
// would be refused for it, and the next one for the same port. The socket never
// listens, so that it is in nobody's way; what cannot be tried is for the forward to say.
func bound(port uint16) bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return false
	}
	return errors.Is(unix.Bind(fd, &unix.SockaddrInet4{Port: int(port)}), unix.EADDRINUSE)
}
