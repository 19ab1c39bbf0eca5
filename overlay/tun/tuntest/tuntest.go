// Package tuntest has a TUN device in memory: the daemon's end is a
// [tun.Device], the other end is the container whose stack a test plays. Both
// ends may be used from any goroutine.
package tuntest

import (
	"context"
	"errors"
	"slices"
	"sync"

	"tulle/overlay/packet"
	"tulle/overlay/tun"
)

// queue is how many packets either direction holds.
const queue = 4096

// ErrQueue is returned by Write when the container takes nothing out, as a
// device with a full queue drops.
var ErrQueue = errors.New("device queue is full")

// Container is the other end of a device: what the container's stack sends and
// receives.
type Container struct{ l *link }

// link is what both ends share.
type link struct {
	out, in   chan []byte // from and to the container, with virtio header
	closed    chan struct{}
	closeOnce sync.Once
}

type device struct{ l *link }

// New makes a device and its container's end.
func New() (tun.Device, *Container) {
	l := &link{
		out:    make(chan []byte, queue),
		in:     make(chan []byte, queue),
		closed: make(chan struct{}),
	}
	return &device{l}, &Container{l}
}

func (d *device) Read(b []byte) (int, error) {
	select {
	case <-d.l.closed:
		return 0, tun.ErrClosed
	default:
	}
	select {
	case p := <-d.l.out:
		return copy(b, p), nil
	case <-d.l.closed:
		return 0, tun.ErrClosed
	}
}

func (d *device) Write(pieces ...[]byte) error {
	select {
	case <-d.l.closed:
		return tun.ErrClosed
	default:
	}
	select {
	case d.l.in <- slices.Concat(pieces...):
		return nil
	default:
		return ErrQueue
	}
}

func (d *device) Close() error {
	d.l.closeOnce.Do(func() { close(d.l.closed) })
	return nil
}

// UDPOffload is true: the container takes UDP super-packets.
func (d *device) UDPOffload() bool { return true }

// Send sends the packet p with a plain virtio header. It blocks while the
// device's queue is full.
func (c *Container) Send(p []byte) { c.SendVirtio(packet.Virtio{}, p) }

// SendVirtio sends p behind v, whether they fit or not.
func (c *Container) SendVirtio(v packet.Virtio, p []byte) {
	b := make([]byte, packet.VirtioLen, packet.VirtioLen+len(p))
	v.Encode(b)
	c.SendRaw(append(b, p...))
}

// SendRaw makes b what one Read of the device returns. b is copied.
func (c *Container) SendRaw(b []byte) {
	select {
	case c.l.out <- slices.Clone(b):
	case <-c.l.closed:
	}
}

// Receive waits for one packet written to the device.
func (c *Container) Receive(ctx context.Context) (packet.Virtio, []byte, error) {
	select {
	case b := <-c.l.in:
		var v packet.Virtio
		if len(b) < packet.VirtioLen {
			return v, nil, errors.New("write is shorter than a virtio header")
		}
		packet.DecodeVirtio(b, &v)
		return v, b[packet.VirtioLen:], nil
	case <-ctx.Done():
		return packet.Virtio{}, nil, ctx.Err()
	}
}

// Pending is the number of packets that Receive would return at once.
func (c *Container) Pending() int { return len(c.l.in) }

// Unread is the number of packets sent that the device's reader has not taken.
func (c *Container) Unread() int { return len(c.l.out) }

// Closed is closed with the device.
func (c *Container) Closed() <-chan struct{} { return c.l.closed }
