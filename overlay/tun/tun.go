package tun

import "errors"

// HeaderLen is the length of the virtio_net_hdr before every packet.
const HeaderLen = 10

// MaxRead is the largest read: a header and a 64 KiB super-packet.
const MaxRead = HeaderLen + 65535

// ErrClosed is returned by a Device after Close.
var ErrClosed = errors.New("device is closed")

// Device moves whole super-packets, each behind its virtio_net_hdr
// (virtio 1.2, 5.1.6; IFF_VNET_HDR with the host's byte order).
//
// One goroutine reads; any number may write. A device never splits or joins:
// what the kernel hands over in one read is one call.
type Device interface {
	// Read fills b (at least MaxRead long) with one header and packet and says
	// how long they are. It blocks; Close wakes it with ErrClosed.
	Read(b []byte) (int, error)
	// Write sends one header and packet, given in pieces, with one system call.
	// The pieces are the caller's again when it returns.
	Write(pieces ...[]byte) error
	// Close wakes readers. It is idempotent.
	Close() error
}
