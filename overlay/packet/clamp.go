package packet

import "encoding/binary"

// TCP options, RFC 9293 section 3.2.
const (
	tcpOptionEnd = 0
	tcpOptionNop = 1
	tcpOptionMSS = 2
	tcpLenMSS    = 4
)

// ClampMSS lowers the maximum segment size that the SYN p announces to what a path
// of mtu bytes carries, in place, and says whether it did. Where partial says so,
// the checksum does not cover the segment yet and stays as it is; a full one is
// made anew, unless it is wrong, for a broken segment must not be mended. p is a
// parsed TCP packet; one that is no SYN, or announces nothing, stays as it is.
func ClampMSS(p []byte, h *Header, mtu int, partial bool) bool {
	if h.Proto != ProtoTCP || h.TCPFlags&FlagSYN == 0 || h.IsFragment() {
		return false
	}
	most := mtu - h.HeaderLen - TCPHeaderLen
	field := announcedMSS(p[h.HeaderLen+TCPHeaderLen : h.HeaderLen+h.L4Len])
	if field == nil || most <= 0 || int(binary.BigEndian.Uint16(field)) <= most {
		return false
	}
	if !partial && !VerifyChecksum(p, h) {
		return false
	}
	binary.BigEndian.PutUint16(field, uint16(most))
	if !partial {
		setTransportChecksum(p[:h.TotalLen], h.HeaderLen, ProtoTCP)
	}
	return true
}

// announcedMSS is the field of the option, a part of o, or nil.
func announcedMSS(o []byte) []byte {
	for len(o) > 0 && o[0] != tcpOptionEnd {
		if o[0] == tcpOptionNop {
			o = o[1:]
			continue
		}
		if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
			return nil
		}
		if o[0] == tcpOptionMSS && o[1] == tcpLenMSS {
			return o[2:4]
		}
		o = o[o[1]:]
	}
	return nil
}
