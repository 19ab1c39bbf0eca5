package packet

import (
	"encoding/binary"
	"errors"
)

// VirtioLen is the length of a virtio_net_hdr as TUN devices use it.
const VirtioLen = 10

// MaxFrames is how many packets one super-packet may become. It bounds the work
// that one read can ask for: gso_size 1 over 60,000 bytes would be 60,000 frames.
const MaxFrames = 64

// Flags and GSO types, virtio 1.2 section 5.1.6.
const (
	VirtioNeedsChecksum = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM
	VirtioDataValid     = 2 // VIRTIO_NET_HDR_F_DATA_VALID

	GSONone  = 0
	GSOTCPv4 = 1    // VIRTIO_NET_HDR_GSO_TCPV4
	GSOTCPv6 = 4    // VIRTIO_NET_HDR_GSO_TCPV6
	GSOUDPL4 = 5    // VIRTIO_NET_HDR_GSO_UDP_L4
	gsoECN   = 0x80 // VIRTIO_NET_HDR_GSO_ECN, beside TCP: the first segment alone keeps CWR
)

// Errors of Virtio.Check.
var (
	ErrVirtioFlags    = errors.New("virtio header asks for what no Linux stack does")
	ErrVirtioType     = errors.New("virtio header's segmentation does not fit the packet")
	ErrVirtioLength   = errors.New("virtio header's lengths do not fit the packet")
	ErrVirtioChecksum = errors.New("virtio header's checksum field is not the packet's")
	ErrVirtioFrames   = errors.New("super-packet would become too many frames")
)

// Virtio is the virtio_net_hdr before each packet of a TUN device: which work
// its stack left to the receiver.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|     flags     |    gso_type   |            hdr_len            |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|            gso_size           |           csum_start          |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|          csum_offset          |   numbers in the host's byte order
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
type Virtio struct {
	Flags, GSOType uint8
	HdrLen         uint16 // a hint, often the whole first buffer's length; never used here
	GSOSize        uint16 // payload of each segment
	CsumStart      uint16 // where the checksum's range begins
	CsumOffset     uint16 // the field's offset from there
}

// DecodeVirtio reads the first VirtioLen bytes of b, which must be there.
func DecodeVirtio(b []byte, v *Virtio) {
	_ = b[VirtioLen-1]
	v.Flags, v.GSOType = b[0], b[1]
	v.HdrLen = binary.NativeEndian.Uint16(b[2:4])
	v.GSOSize = binary.NativeEndian.Uint16(b[4:6])
	v.CsumStart = binary.NativeEndian.Uint16(b[6:8])
	v.CsumOffset = binary.NativeEndian.Uint16(b[8:10])
}

// Encode writes the first VirtioLen bytes of b, which must be there.
func (v Virtio) Encode(b []byte) {
	_ = b[VirtioLen-1]
	b[0], b[1] = v.Flags, v.GSOType
	binary.NativeEndian.PutUint16(b[2:4], v.HdrLen)
	binary.NativeEndian.PutUint16(b[4:6], v.GSOSize)
	binary.NativeEndian.PutUint16(b[6:8], v.CsumStart)
	binary.NativeEndian.PutUint16(b[8:10], v.CsumOffset)
}

// Check holds the virtio header of a packet read from a container's device
// against the packet's parsed headers. It accepts what a Linux stack produces
// for the offloads we ask for: a plain packet, one whose TCP or UDP checksum is
// partial, a TCP super-packet (with or without the ECN flag), a UDP one. All
// else is an error of this package: a container with a raw packet socket
// can write any header that its kernel lets through.
//
// packetLen is the number of bytes read behind the virtio header. What passes
// may be given to Split and CompleteChecksum, and may be written unchanged,
// with its header, to another TUN device of this host: kernel and Split then
// read the same ranges, all of them inside the packet.
func (v *Virtio) Check(h *Header, packetLen int) error {
	if v.Flags&^(VirtioNeedsChecksum|VirtioDataValid) != 0 ||
		v.Flags == VirtioNeedsChecksum|VirtioDataValid {
		return ErrVirtioFlags
	}
	if h.TotalLen > packetLen || int(v.HdrLen) > h.TotalLen {
		return ErrVirtioLength
	}
	if v.Flags&VirtioNeedsChecksum != 0 {
		if err := v.checkPartial(h, packetLen); err != nil {
			return err
		}
	}
	if v.GSOType == GSONone {
		if v.GSOSize != 0 {
			return ErrVirtioType
		}
		return nil
	}
	// Segmenting stacks leave the checksum to whoever cuts the segments.
	if v.Flags&VirtioNeedsChecksum == 0 {
		return ErrVirtioChecksum
	}
	switch v.GSOType {
	case GSOTCPv4, GSOTCPv4 | gsoECN, GSOTCPv6, GSOTCPv6 | gsoECN:
		if h.Proto != ProtoTCP || h.IPv6 != (v.GSOType&^gsoECN == GSOTCPv6) {
			return ErrVirtioType
		}
	case GSOUDPL4:
		if h.Proto != ProtoUDP {
			return ErrVirtioType
		}
	default:
		return ErrVirtioType
	}
	// 0xffff is the kernel's own mark for a list of fragments (GSO_BY_FRAGS).
	if v.GSOSize == 0 || v.GSOSize == 0xffff || h.PayloadLen == 0 {
		return ErrVirtioLength
	}
	n := Segments(h, v)
	if n > MaxFrames {
		return ErrVirtioFrames
	}
	// A SYN or RST would be repeated in every segment, at other sequence numbers.
	if n > 1 && h.TCPFlags&(FlagSYN|FlagRST) != 0 {
		return ErrVirtioType
	}
	return nil
}

// checkPartial holds NEEDS_CSUM against the packet: the checksum must be the one
// of its TCP or UDP header and its range all of the packet, for that is what
// the kernel will sum.
func (v *Virtio) checkPartial(h *Header, packetLen int) error {
	if h.IsFragment() {
		return ErrVirtioChecksum
	}
	if h.Proto != ProtoTCP && h.Proto != ProtoUDP {
		return ErrVirtioChecksum
	}
	if int(v.CsumStart) != h.HeaderLen || int(v.CsumOffset) != checksumAt(h.Proto) {
		return ErrVirtioChecksum
	}
	if packetLen != h.TotalLen || h.HeaderLen+h.L4Len+h.PayloadLen != h.TotalLen {
		return ErrVirtioLength
	}
	return nil
}

// Segments is how many packets of the wire the packet is. h and v passed Check.
func Segments(h *Header, v *Virtio) int {
	if v.GSOType == GSONone || h.PayloadLen <= int(v.GSOSize) {
		return 1
	}
	return (h.PayloadLen + int(v.GSOSize) - 1) / int(v.GSOSize)
}
