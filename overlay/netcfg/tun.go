package netcfg

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

// TUNPath is the device that makes TUN devices.
const TUNPath = "/dev/net/tun"

// MaxName is the longest name of a network device (IFNAMSIZ less its zero byte).
const MaxName = unix.IFNAMSIZ - 1

// Errors of making a device. Each one's text ends with what mends it.
var (
	ErrNoTUN     = errors.New("this kernel has no " + TUNPath + "; as root: modprobe tun")
	ErrTUNClosed = errors.New(TUNPath + " cannot be opened by this user; as root: chmod 0666 " + TUNPath +
		` (to keep it over a reboot: echo 'KERNEL=="tun", MODE="0666"' > /etc/udev/rules.d/70-tun.rules)`)
	ErrNotOurNamespace = errors.New("no rights over this network namespace; run this inside the user namespace that owns it (nsenter -t PID -U --preserve-credentials)")
	ErrExists          = errors.New("a device of that name is there already")
)

// CheckTUN reports whether this process may open /dev/net/tun; the error is, or
// wraps, ErrNoTUN or ErrTUNClosed.
func CheckTUN() error {
	fd, err := unix.Open(TUNPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case err == nil:
		return unix.Close(fd)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return ErrNoTUN
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return ErrTUNClosed
	}
	return fmt.Errorf("open %s: %w", TUNPath, err)
}

// CreateTUN makes the TUN device name in the calling thread's namespace, with
// IFF_VNET_HDR and IFF_NO_PI, down and without an address, and returns its
// descriptor, close-on-exec and non-blocking. The device lives as long as that
// descriptor or a duplicate of it.
func CreateTUN(name string, mtu int) (*os.File, error) {
	if err := CheckTUN(); err != nil {
		return nil, err
	}
	// TUNSETIFF attaches to a persistent TUN of that name instead of refusing.
	if _, err := netlink.LinkByName(name); err == nil {
		return nil, fmt.Errorf("create %s: %w", name, ErrExists)
	}
	dev, err := tun.CreateTUN(name, mtu)
	if err != nil {
		if errors.Is(err, unix.EPERM) {
			err = ErrNotOurNamespace
		}
		return nil, fmt.Errorf("create %s: %w", name, err)
	}
	// The library's device listens for link events on goroutines of its own;
	// only the descriptor outlives this call.
	defer dev.Close()
	return duplicate(dev.File(), name)
}

// duplicate leaves f and its mode alone; f.Fd would make it blocking.
func duplicate(f *os.File, name string) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("duplicate %s: %w", name, err)
	}
	var fd int
	var dupErr error
	if err := raw.Control(func(from uintptr) {
		fd, dupErr = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 0)
	}); err != nil {
		return nil, fmt.Errorf("duplicate %s: %w", name, err)
	}
	if dupErr != nil {
		return nil, fmt.Errorf("duplicate %s: %w", name, dupErr)
	}
	return os.NewFile(uintptr(fd), name), nil
}
