package udp

import (
	"errors"
	"net/netip"
)

// Limits of one send with segmentation offload.
const (
	// MaxSegments is how many datagrams UDP_SEGMENT takes in one call on every
	// kernel that has it (UDP_MAX_SEGMENTS was 64 before 6.9).
	MaxSegments = 64
	// MaxSend is the most payload one call may carry: 65,535 less IPv4 and UDP
	// headers, less what loopback keeps back from one GRO read.
	MaxSend = 65000
)

// Errors of a Conn that callers branch on.
var (
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("socket is closed")
	// ErrMessageSize is EMSGSIZE: with segmentation a segment does not fit the
	// path MTU as the kernel knows it, else the datagram does not fit IPv4.
	// Nothing was sent. Sent one by one (segment 0), datagrams are fragmented.
	ErrMessageSize = errors.New("datagram does not fit the path MTU")
	// ErrTooMany: more than MaxSegments segments, or more than MaxSend bytes of them.
	ErrTooMany = errors.New("too many datagrams for one send")
)

// Message is one receive: one datagram, or several of equal length (the last
// may be shorter) that the kernel joined (UDP_GRO).
type Message struct {
	Buf     []byte         // the caller's, at least 65,535 long
	N       int            // bytes received
	Segment int            // length of each datagram; N if there is one
	From    netip.AddrPort // unmapped
	// ECN is the congestion field of the outer IP header, its two bits.
	ECN uint8
}

// Conn sends and receives datagrams in bulk. One goroutine receives; any number
// may send. Without the kernel's UDP_SEGMENT or UDP_GRO the same calls work on
// single datagrams with sendmmsg and recvmmsg.
type Conn interface {
	// Send sends b as datagrams of segment bytes each, the last one as long as
	// what is left, at most MaxSegments of them. segment 0 or ≥ len(b): one datagram.
	Send(to netip.AddrPort, b []byte, segment int) error
	// SendECN is Send with the two bits of congestion notification in the outer header.
	SendECN(to netip.AddrPort, b []byte, segment int, ecn uint8) error
	// Receive waits for at least one message and fills as many as are there.
	// Close wakes it with ErrClosed.
	Receive(batch []Message) (int, error)
	// Local is the bound address.
	Local() netip.AddrPort
	// Close is idempotent.
	Close() error
}
