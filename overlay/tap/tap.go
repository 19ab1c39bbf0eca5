// Package tap makes a container's device of a TAP, for guests that want Ethernet: a
// virtual machine, or a stack that will have nothing else. To the data path it is a
// [tun.Device] like any: the same policy, the same flows.
//
// On the guest's wire are two stations, the guest and the daemon. The daemon answers
// for every address but the guest's own: ARP, and neighbour discovery. So a guest may
// take its network for as large as it likes, or have a router at any address, and
// always sends to the daemon. What the guest's Ethernet address is, is seen from its
// frames; what it is sent before it sent any waits for nobody: the guest is asked.
//
// It is the slow way. Frames are copied, and super-packets split here, because a TAP
// as songgao/water and most virtual machine monitors make it has no offloads.
package tap

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"github.com/songgao/water"
	"golang.org/x/sys/unix"

	"tulle/overlay/packet"
	"tulle/overlay/tun"
)

// ErrFlags: a TAP, but of another kind than IFF_TAP|IFF_NO_PI.
var ErrFlags = errors.New("TAP device has the wrong kind")

// ErrNoGuest is returned by Write while the guest has not said which Ethernet address
// it has; it is asked each time.
var ErrNoGuest = errors.New("guest has not shown its Ethernet address yet")

// Router is the daemon's address on the guest's wire: what a guest may have for its
// default route, though any address will do.
var Router = netip.MustParseAddr("169.254.0.1")

// mac is the daemon's on every guest's wire; locally administered.
var mac = [6]byte{0xee, 0xee, 169, 254, 0, 1}

// Device is the daemon's end of a TAP.
type Device struct {
	frames    *water.Interface
	own, own6 netip.Addr // the guest's; set before the first Read

	in []byte // the reader's

	mu     sync.Mutex // guards what follows
	guest  [6]byte
	seen   bool // guest is known
	whole  []byte
	out    []byte
	header packet.Header
}

var _ tun.Device = (*Device)(nil)

// Is says whether a descriptor is a TAP.
func Is(f *os.File) bool {
	flags, err := flagsOf(f)
	return err == nil && flags&unix.IFF_TAP != 0
}

func flagsOf(f *os.File) (flags uint16, err error) {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return 0, err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	if e := raw.Control(func(fd uintptr) { err = unix.IoctlIfreq(int(fd), unix.TUNGETIFF, ifr) }); e != nil {
		return 0, e
	}
	return ifr.Uint16(), err
}

// FromFile makes a Device over a duplicate of a TAP's descriptor; f stays the caller's.
func FromFile(f *os.File) (*Device, error) {
	flags, err := flagsOf(f)
	if err != nil {
		return nil, fmt.Errorf("use TAP descriptor: %w", err)
	}
	if flags&unix.IFF_TAP == 0 || flags&(unix.IFF_VNET_HDR|unix.IFF_DETACH_QUEUE) != 0 {
		return nil, fmt.Errorf("%w: flags are %#x, needed are IFF_TAP|IFF_NO_PI and no virtio header", ErrFlags, flags)
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("use TAP descriptor: %w", err)
	}
	var own int
	if e := raw.Control(func(fd uintptr) { own, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3) }); e != nil || err != nil {
		return nil, fmt.Errorf("duplicate TAP descriptor: %w", errors.Join(e, err))
	}
	// So that Close wakes a reader.
	if err := unix.SetNonblock(own, true); err != nil {
		unix.Close(own)
		return nil, fmt.Errorf("use TAP descriptor: %w", err)
	}
	return newDevice(&water.Interface{ReadWriteCloser: os.NewFile(uintptr(own), "tap")}), nil
}

func newDevice(frames *water.Interface) *Device {
	return &Device{frames: frames, in: make([]byte, frameLen), whole: make([]byte, 0, frameLen), out: make([]byte, frameLen)}
}

// Guest says which addresses the guest has: for all others the daemon answers. own6
// may be the zero Addr.
func (d *Device) Guest(own, own6 netip.Addr) { d.own, d.own6 = own, own6 }

// Read implements tun.Device. What the daemon itself is asked it answers here; what is
// neither IPv4 nor IPv6 is given as a packet of no version, to be counted.
func (d *Device) Read(b []byte) (int, error) {
	for {
		n, err := d.frames.Read(d.in)
		if err != nil {
			if errors.Is(err, os.ErrClosed) {
				return 0, tun.ErrClosed
			}
			return 0, fmt.Errorf("read TAP: %w", err)
		}
		frame := d.in[:n]
		if n < ethernetLen || frame[6]&1 != 0 {
			continue // no station sends so
		}
		if answer := d.take(frame); answer != nil {
			// One that is lost (the device is down, the kernel out of memory) is asked for
			// again; of a device that is gone the next read tells.
			d.mu.Lock()
			_, _ = d.frames.Write(answer)
			d.mu.Unlock()
			continue
		}
		if asks(frame) {
			continue // of its own addresses, or nobody's: not ours to answer
		}
		clear(b[:tun.HeaderLen])
		n = tun.HeaderLen + copy(b[tun.HeaderLen:], frame[ethernetLen:])
		if t := etherType(frame); t != typeIPv4 && t != typeIPv6 {
			b[tun.HeaderLen] &= 0x0f
		}
		return n, nil
	}
}

// Write implements tun.Device.
func (d *Device) Write(pieces ...[]byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.seen {
		if d.own.IsValid() {
			d.send(who(d.out[:0], d.own))
		}
		return ErrNoGuest
	}
	d.whole = d.whole[:0]
	for _, p := range pieces {
		d.whole = append(d.whole, p...)
	}
	var v packet.Virtio
	packet.DecodeVirtio(d.whole, &v)
	p := d.whole[tun.HeaderLen:]
	if err := packet.Parse(p, &d.header); err != nil {
		return err // the data path's own: it never writes such
	}
	for i := range packet.Segments(&d.header, &v) {
		d.ethernet(d.out, d.header.IPv6)
		n := packet.Split(d.out[ethernetLen:], p, &d.header, &v, i)
		if err := d.send(d.out[:ethernetLen+n]); err != nil {
			return err
		}
	}
	return nil
}

func (d *Device) send(frame []byte) error {
	_, err := d.frames.Write(frame)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrClosed):
		return tun.ErrClosed
	case errors.Is(err, unix.EIO):
		return tun.ErrDown
	}
	return err
}

// Close implements tun.Device.
func (d *Device) Close() error {
	if err := d.frames.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}
