package netlab

import (
	"bytes"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// offloads are the features (by ethtool's names) of which a card without any
// has none.
var offloads = []string{
	"tx-tcp-segmentation", "tx-tcp-ecn-segmentation", "tx-tcp6-segmentation", "tx-tcp-mangleid-segmentation",
	"tx-generic-segmentation", "rx-gro", "tx-udp-segmentation", "tx-gso-list", "rx-gro-list", "rx-udp-gro-forwarding",
	"tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation",
}

// From <linux/ethtool.h>.
const (
	getStringSetInfo = 0x37
	getStrings       = 0x1b
	setFeatures      = 0x3b
	featureSet       = 4 // ETH_SS_FEATURES
	stringLen        = 32
)

// offloadsOff turns them off on a device of the calling thread's namespace.
func offloadsOff(device string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	names, err := features(fd, device)
	if err != nil {
		return fmt.Errorf("features of %s: %w", device, err)
	}
	words := (len(names) + 31) / 32
	// struct ethtool_sfeatures: command, number of words, then valid and wanted.
	request := make([]uint32, 2+2*words)
	request[0], request[1] = setFeatures, uint32(words)
	for i, name := range names {
		for _, o := range offloads {
			if name == o {
				request[2+2*(i/32)] |= 1 << (i % 32)
			}
		}
	}
	// 1 (ETHTOOL_F_UNSUPPORTED) and the like tell that some stay as they are.
	if err := ethtool(fd, device, unsafe.Pointer(&request[0])); err != nil {
		return fmt.Errorf("turn the offloads of %s off: %w", device, err)
	}
	runtime.KeepAlive(request)
	return nil
}

// features are the names of a device's features, by their bit.
func features(fd int, device string) ([]string, error) {
	var info struct {
		command, reserved uint32
		mask              uint64
		length            uint32
		_                 uint32
	}
	info.command, info.mask = getStringSetInfo, 1<<featureSet
	if err := ethtool(fd, device, unsafe.Pointer(&info)); err != nil {
		return nil, err
	}
	n := int(info.length)
	// struct ethtool_gstrings: command, set, length, then the strings.
	request := make([]byte, 12+n*stringLen)
	*(*uint32)(unsafe.Pointer(&request[0])) = getStrings
	*(*uint32)(unsafe.Pointer(&request[4])) = featureSet
	*(*uint32)(unsafe.Pointer(&request[8])) = uint32(n)
	if err := ethtool(fd, device, unsafe.Pointer(&request[0])); err != nil {
		return nil, err
	}
	names := make([]string, n)
	for i := range names {
		one := request[12+i*stringLen:][:stringLen]
		name, _, _ := bytes.Cut(one, []byte{0})
		names[i] = string(name)
	}
	return names, nil
}

func ethtool(fd int, device string, data unsafe.Pointer) error {
	var request struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte // the rest of the union
	}
	copy(request.name[:unix.IFNAMSIZ-1], device)
	request.data = data
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	if errno != 0 {
		return errno
	}
	return nil
}
