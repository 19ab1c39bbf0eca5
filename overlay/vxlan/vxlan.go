// Package vxlan knows the bytes between two cells inside a tunnel's UDP
// datagram: the VXLAN header with its Group Policy extension and the Ethernet
// header behind it. A frame says which group sent the packet and which VTEP it
// is meant for; whether that is believed is the data path's decision.
//
// The package is pure, keeps nothing and allocates nothing, so any goroutine may
// call it. Formats: RFC 7348 section 5, draft-smith-vxlan-group-policy-05
// section 2.1, and the frames that silk and Linux send.
package vxlan

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// Lengths in bytes.
const (
	HeaderLen   = 8                       // VXLAN
	EthernetLen = 14                      // untagged Ethernet II
	Overhead    = HeaderLen + EthernetLen // what Encode writes before an inner packet
)

// Flag bits of the first byte. All others are reserved.
const (
	flagGroup = 0x80 // G: the group policy ID is there
	flagVNI   = 0x08 // I: the VNI is valid
)

// Ethernet types, IEEE 802.
const (
	etherTypeIPv4 = 0x0800
	etherTypeIPv6 = 0x86dd
)

// Errors of Decode.
var (
	ErrShort     = errors.New("frame is shorter than its headers")
	ErrFlags     = errors.New("frame's VNI is not marked valid")
	ErrEtherType = errors.New("frame holds neither IPv4 nor IPv6")
)

// MAC is an Ethernet address.
type MAC [6]byte

// MACFor is the address of the VTEP of the cell that leases subnet: ee:ee and
// the four bytes of the lease's base address, as silk numbers its VTEPs.
// subnet must be IPv4 (or IPv4 mapped).
func MACFor(subnet netip.Addr) MAC {
	a := subnet.As4()
	return MAC{0xee, 0xee, a[0], a[1], a[2], a[3]}
}

// Frame is what comes before the inner packet:
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|G|R|R|R|I|R|R|R|R|D|R|R|A|R|R|R|        Group Policy ID        |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|          VXLAN Network Identifier (VNI)       |   Reserved    |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|              Destination MAC (6 bytes)                        |
//	+                               +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                               |       Source MAC (6 bytes)    |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+                               +
//	|                                                               |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|   EtherType 0x0800 or 0x86dd  |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//
// D (don't learn) and A (policy applied) and all reserved bits are ignored on
// read and zero on write: a Linux receiver turns D and A into bits of the
// packet's mark, which would break silk's exact match of the tag.
type Frame struct {
	GroupID uint16 // tag of the source app; 0: none, and no G bit on the wire
	VNI     uint32 // 24 bits
	DstMAC  MAC
	SrcMAC  MAC
	IPv6    bool // what the packet is
}

// Encode writes f into the first Overhead bytes of b, which must be there.
func (f *Frame) Encode(b []byte) {
	_ = b[Overhead-1]
	flags := uint32(flagVNI) << 24
	if f.GroupID != 0 {
		flags |= flagGroup<<24 | uint32(f.GroupID)
	}
	binary.BigEndian.PutUint32(b[0:4], flags)
	binary.BigEndian.PutUint32(b[4:8], f.VNI<<8)
	copy(b[8:14], f.DstMAC[:])
	copy(b[14:20], f.SrcMAC[:])
	t := uint16(etherTypeIPv4)
	if f.IPv6 {
		t = etherTypeIPv6
	}
	binary.BigEndian.PutUint16(b[20:22], t)
}

// Decode reads the headers of the datagram b into f, every field of it, and
// returns the inner packet, a part of b (possibly empty). With an error f is
// not to be used. VNI and destination MAC are for the caller to compare.
func Decode(b []byte, f *Frame) (inner []byte, err error) {
	if len(b) < Overhead {
		return nil, ErrShort
	}
	if b[0]&flagVNI == 0 {
		return nil, ErrFlags
	}
	switch binary.BigEndian.Uint16(b[20:22]) {
	case etherTypeIPv4:
		f.IPv6 = false
	case etherTypeIPv6:
		f.IPv6 = true
	default:
		return nil, ErrEtherType
	}
	f.GroupID = 0
	if b[0]&flagGroup != 0 {
		f.GroupID = binary.BigEndian.Uint16(b[2:4])
	}
	f.VNI = binary.BigEndian.Uint32(b[4:8]) >> 8
	copy(f.DstMAC[:], b[8:14])
	copy(f.SrcMAC[:], b[14:20])
	return b[Overhead:], nil
}
