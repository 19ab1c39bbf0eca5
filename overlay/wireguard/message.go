package wireguard

import (
	"encoding/binary"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tai64n"
)

// The four messages, all numbers little endian. Their first byte says which one it
// is; the three behind it are zero.
//
//	initiation  1 | sender | ephemeral 32 | static 32+16 | timestamp 12+16 | mac1 16 | mac2 16
//	response    2 | sender | receiver | ephemeral 32 | nothing 0+16 | mac1 16 | mac2 16
//	cookie      3 | receiver | nonce 24 | cookie 16+16
//	transport   4 | receiver | counter 8 | packet n+16
//
// Sender and receiver are indices, 4 bytes, which each end gives to its own
// handshakes and sessions.
const (
	typeInitiation = device.MessageInitiationType
	typeResponse   = device.MessageResponseType
	typeCookie     = device.MessageCookieReplyType
	typeTransport  = device.MessageTransportType

	initiationLen = device.MessageInitiationSize
	responseLen   = device.MessageResponseSize
	cookieLen     = device.MessageCookieReplySize

	transportLen = device.MessageTransportHeaderSize // before the packet
	tagLen       = device.MessageTransportSize - transportLen

	macsLen = 32 // mac1 and mac2
	keyLen  = 32
)

var (
	endian = binary.LittleEndian

	// What Noise makes of a message lies between the indices and the macs.
	initiationAt = 8
	responseAt   = 12
)

// kind is a datagram's type, 0 if it is none of the four or not as long as that one is.
func kind(d []byte) uint32 {
	if len(d) < transportLen+tagLen {
		return 0
	}
	k := endian.Uint32(d)
	switch {
	case k == typeTransport,
		k == typeInitiation && len(d) == initiationLen,
		k == typeResponse && len(d) == responseLen,
		k == typeCookie && len(d) == cookieLen:
		return k
	}
	return 0
}

// cookieReply writes what the library's cookie checker answers.
func cookieReply(r *device.MessageCookieReply) []byte {
	b := make([]byte, cookieLen)
	endian.PutUint32(b, typeCookie)
	endian.PutUint32(b[4:], r.Receiver)
	copy(b[8:], r.Nonce[:])
	copy(b[8+len(r.Nonce):], r.Cookie[:])
	return b
}

func readCookieReply(b []byte) *device.MessageCookieReply {
	r := &device.MessageCookieReply{Type: typeCookie, Receiver: endian.Uint32(b[4:])}
	copy(r.Nonce[:], b[8:])
	copy(r.Cookie[:], b[8+len(r.Nonce):])
	return r
}

// Handshakes carry the time that they began at, so that an old one is not taken
// again: TAI64N, of which the last 24 bits are left out lest they tell how busy
// this cell is. The library stamps the present alone.
const stampStep = 1 << 24 // nanoseconds

func stamp(seconds int64, nanoseconds int) (s tai64n.Timestamp) {
	const epoch = 1<<62 + 10
	binary.BigEndian.PutUint64(s[:], uint64(epoch+seconds))
	binary.BigEndian.PutUint32(s[8:], uint32(nanoseconds)&^(stampStep-1))
	return s
}
