package packet

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// Protocol numbers that are parsed further.
const (
	ProtoICMP   = 1
	ProtoTCP    = 6
	ProtoUDP    = 17
	ProtoICMPv6 = 58
)

// TCP flags, RFC 9293 section 3.1.
const (
	FlagFIN = 1 << iota
	FlagSYN
	FlagRST
	FlagPSH
	FlagACK
	FlagURG
	FlagECE
	FlagCWR
)

// Header lengths in bytes, without options.
const (
	IPv4HeaderLen = 20
	IPv6HeaderLen = 40
	TCPHeaderLen  = 20
	UDPHeaderLen  = 8
	ICMPHeaderLen = 8
)

// MaxLen is the length of the longest packet: IPv6 could be longer by its header.
const MaxLen = 65535

// Errors of Parse and ParseQuoted.
var (
	ErrShort        = errors.New("packet is shorter than an IP header")
	ErrVersion      = errors.New("packet is neither IPv4 nor IPv6")
	ErrHeaderLength = errors.New("IPv4 header length is impossible")
	ErrLength       = errors.New("IP length is impossible")
	ErrChecksum     = errors.New("IPv4 header checksum is wrong")
	ErrOptions      = errors.New("IPv4 options or IPv6 extension headers are cut off, too many, or in no order")
	ErrFragment     = errors.New("fragment hides its transport header")
	ErrTransport    = errors.New("transport header is cut off or its length is impossible")
	ErrNotQuoting   = errors.New("packet is not an ICMP error that quotes another")
)

// Header is what one Parse learns of a packet. Offsets count from its first byte.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|Version|  IHL  |Type of Service|          Total Length         |  0
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|         Identification        |0|D|M|     Fragment Offset     |  4
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|  Time to Live |    Protocol   |        Header Checksum        |  8
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                         Source Address                        | 12
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                      Destination Address                      | 16
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//
// (RFC 791 section 3.1.) Behind the header, TCP (RFC 9293 section 3.1):
//
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|          Source Port          |       Destination Port        |  0
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                        Sequence Number                        |  4
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                    Acknowledgment Number                      |  8
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|  Data |       |C|E|U|A|P|R|S|F|                               |
//	| Offset| Rsrvd |W|C|R|C|S|S|Y|I|            Window             | 12
//	|       |       |R|E|G|K|H|T|N|N|                               |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|           Checksum            |         Urgent Pointer        | 16
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//
// or UDP (RFC 768): source port, destination port, length, checksum; or ICMP
// (RFC 792): type, code, checksum, four bytes that the type gives a meaning.
type Header struct {
	Src, Dst netip.Addr
	Proto    uint8
	IPv6     bool
	TTL, TOS uint8  // IPv6: hop limit, traffic class
	ID       uint32 // of the datagram that fragments are of; of IPv4's 16 bits

	HeaderLen  int  // of IP, with options or extension headers
	TotalLen   int  // of the whole packet; that of the super-packet for one
	PartLen    int  // of what fragments are parts of: behind IPv4's header, IPv6's fragment header
	HasOptions bool // IPv4 options, IPv6 extension headers
	// SourceRoute: an option says which way the packet is to go.
	SourceRoute bool

	DontFragment   bool // always, of IPv6: only its sender fragments
	MoreFragments  bool
	FragmentOffset int // bytes

	// Zero from here on for a later fragment (FragmentOffset > 0) and, but for
	// PayloadLen, for any protocol other than TCP, UDP and ICMP.

	SrcPort, DstPort   uint16 // TCP and UDP
	ICMPType, ICMPCode uint8
	TCPFlags           uint8
	Seq, Ack           uint32
	Window             uint16 // as sent, unscaled
	L4Len              int    // TCP (with options), UDP or ICMP header
	PayloadLen         int    // behind that header; of a later fragment, behind the IPv4 header
}

// IsFragment says whether the packet is a part of a larger one.
func (h *Header) IsFragment() bool { return h.MoreFragments || h.FragmentOffset != 0 }

// SegmentLen is SEG.LEN of RFC 9293: the sequence numbers a TCP segment occupies.
func (h *Header) SegmentLen() uint32 {
	n := uint32(h.PayloadLen)
	if h.TCPFlags&FlagSYN != 0 {
		n++
	}
	if h.TCPFlags&FlagFIN != 0 {
		n++
	}
	return n
}

// IsPortUnreachable says whether the packet is an ICMP error that says so, in either
// family.
func (h *Header) IsPortUnreachable() bool {
	if h.Proto == ProtoICMPv6 {
		return h.IsICMPError() && h.ICMPType == icmp6Unreachable && h.ICMPCode == codes6[CodePortUnreachable]
	}
	return h.IsICMPError() && h.ICMPType == icmpUnreachable && h.ICMPCode == CodePortUnreachable
}

// IsICMPError says whether the packet is an ICMP message about another packet
// (RFC 1122 section 3.2.2): destination unreachable, source quench, redirect,
// time exceeded, parameter problem.
func (h *Header) IsICMPError() bool {
	if h.FragmentOffset != 0 {
		return false
	}
	if h.Proto == ProtoICMPv6 {
		return h.IPv6 && h.ICMPType >= icmp6Unreachable && h.ICMPType <= icmp6ParameterProblem
	}
	if h.Proto != ProtoICMP {
		return false
	}
	switch h.ICMPType {
	case icmpUnreachable, icmpSourceQuench, icmpRedirect, icmpTimeExceeded, icmpParameterProblem:
		return true
	}
	return false
}

// Parse reads the headers of the packet b into h and assigns every field. A
// length in the header below len(b) is fine: the caller cuts b to h.TotalLen.
// With an error, which is one of this package's, h is not to be used.
//
// The header checksum is verified (RFC 1812 section 5.2.2): a packet is split,
// joined and answered with fresh ones, which must not mend a broken packet. The
// transport's checksum is not: see VerifyChecksum.
func Parse(b []byte, h *Header) error {
	if len(b) > 0 && b[0]>>4 == 6 {
		if err := parseIPv6(b, h); err != nil {
			return err
		}
		if h.TotalLen > len(b) {
			return ErrLength
		}
	} else if err := parseWholeIPv4(b, h); err != nil {
		return err
	}
	h.PayloadLen = h.TotalLen - h.HeaderLen
	if h.FragmentOffset != 0 {
		// A fragment at offset 8 rewrites the flags of the TCP header that a
		// verdict was made on (RFC 1858 section 3); one that ends behind byte
		// 65,535 is the ping of death.
		if h.Proto == ProtoTCP && h.FragmentOffset < TCPHeaderLen {
			return ErrFragment
		}
		if h.FragmentOffset+h.PartLen > MaxLen {
			return ErrLength
		}
		return nil
	}
	l4 := b[h.HeaderLen:h.TotalLen]
	switch h.Proto {
	case ProtoTCP:
		if len(l4) < TCPHeaderLen {
			return ErrTransport
		}
		h.L4Len = int(l4[12]>>4) * 4
		if h.L4Len < TCPHeaderLen || h.L4Len > len(l4) {
			return ErrTransport
		}
		h.PayloadLen -= h.L4Len
		parsePorts(l4, h)
		h.Seq = binary.BigEndian.Uint32(l4[4:8])
		h.Ack = binary.BigEndian.Uint32(l4[8:12])
		h.TCPFlags = l4[13]
		h.Window = binary.BigEndian.Uint16(l4[14:16])
	case ProtoUDP:
		if len(l4) < UDPHeaderLen {
			return ErrTransport
		}
		h.L4Len = UDPHeaderLen
		n := int(binary.BigEndian.Uint16(l4[4:6]))
		if n < UDPHeaderLen || n > len(l4) && !h.MoreFragments {
			return ErrTransport
		}
		h.PayloadLen = min(n, len(l4)) - UDPHeaderLen
		parsePorts(l4, h)
	case ProtoICMP, ProtoICMPv6:
		if h.IPv6 != (h.Proto == ProtoICMPv6) {
			return nil // the other family's: a protocol like any unknown one
		}
		if len(l4) < ICMPHeaderLen {
			return ErrTransport
		}
		h.L4Len = ICMPHeaderLen
		h.PayloadLen -= ICMPHeaderLen
		h.ICMPType, h.ICMPCode = l4[0], l4[1]
	}
	return nil
}

func parseWholeIPv4(b []byte, h *Header) error {
	if err := parseIPv4(b, h); err != nil {
		return err
	}
	if h.TotalLen > len(b) {
		return ErrLength
	}
	if fold(sum(b[:h.HeaderLen], 0)) != 0xffff {
		return ErrChecksum
	}
	if h.HasOptions {
		var ok bool
		if h.SourceRoute, ok = checkOptions(b[IPv4HeaderLen:h.HeaderLen]); !ok {
			return ErrOptions
		}
	}
	return nil
}

// parseIPv4 assigns what the IPv4 header says and zeroes the rest of h. It
// leaves the total length unchecked against len(b), which a quoted packet falls
// short of.
func parseIPv4(b []byte, h *Header) error {
	if len(b) < IPv4HeaderLen {
		return ErrShort
	}
	if b[0]>>4 != 4 {
		return ErrVersion
	}
	headerLen := int(b[0]&0x0f) * 4
	if headerLen < IPv4HeaderLen || headerLen > len(b) {
		return ErrHeaderLength
	}
	total := int(binary.BigEndian.Uint16(b[2:4]))
	if total < headerLen {
		return ErrLength
	}
	fragment := binary.BigEndian.Uint16(b[6:8])
	*h = Header{
		Src:            netip.AddrFrom4([4]byte(b[12:16])),
		Dst:            netip.AddrFrom4([4]byte(b[16:20])),
		Proto:          b[9],
		TTL:            b[8],
		TOS:            b[1],
		ID:             uint32(binary.BigEndian.Uint16(b[4:6])),
		HeaderLen:      headerLen,
		TotalLen:       total,
		PartLen:        total - headerLen,
		HasOptions:     headerLen > IPv4HeaderLen,
		DontFragment:   fragment&0x4000 != 0,
		MoreFragments:  fragment&0x2000 != 0,
		FragmentOffset: int(fragment&0x1fff) * 8,
	}
	return nil
}

func parsePorts(l4 []byte, h *Header) {
	h.SrcPort = binary.BigEndian.Uint16(l4[0:2])
	h.DstPort = binary.BigEndian.Uint16(l4[2:4])
}

// DecrementTTL counts a hop in the packet p: it lowers the time to live, or hop
// limit, and mends IPv4's header checksum incrementally (RFC 1141, RFC 1624). It is
// false, and p as it was, when that would reach 0. p is a parsed packet.
func DecrementTTL(p []byte) bool {
	if p[0]>>4 == 6 {
		if p[7] <= 1 {
			return false
		}
		p[7]--
		return true
	}
	if p[8] <= 1 {
		return false
	}
	p[8]--
	// The 16-bit word of TTL and protocol fell by 0x0100, so the sum's
	// complement grows by as much, with the carry brought around.
	s := uint32(binary.BigEndian.Uint16(p[10:12])) + 0x0100
	binary.BigEndian.PutUint16(p[10:12], uint16(s+s>>16))
	return true
}
