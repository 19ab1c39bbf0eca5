package tlsproxy

import (
	"encoding/binary"
	"net/netip"
)

// The PROXY protocol's version 2 (haproxy's doc/proxy-protocol.txt, section 2.2):
//
//	signature 12 bytes | 0x21: version 2, PROXY | 0x11: TCP over IPv4, 0x21: over IPv6
//	length of what follows, 16 bit | source, destination, their ports | TLVs
//
// A TLV is a type, a length of 16 bit and the value.
const (
	// TLVApp is of the range for applications' own use: the GUID of the caller's app.
	TLVApp = 0xE0

	tlvSSL        = 0x20 // PP2_TYPE_SSL
	tlvSSLVersion = 0x21
	tlvSSLName    = 0x22 // common name of the client's certificate
	sslUsed       = 0x01 // PP2_CLIENT_SSL
	sslCert       = 0x02 // PP2_CLIENT_CERT_CONN
)

const signature = "\r\n\r\n\x00\r\nQUIT\n"

// proxyHeader is the header of one connection. name is the common name of a
// verified client certificate, or "".
func proxyHeader(client, server netip.AddrPort, app, version, name string) []byte {
	b := append([]byte(signature), 0x21, 0x11, 0, 0)
	from, to := client.Addr().Unmap(), server.Addr().Unmap()
	if !from.Is4() || !to.Is4() {
		b[13] = 0x21
		f, t := from.As16(), to.As16()
		b = append(append(b, f[:]...), t[:]...)
	} else {
		b = append(append(b, from.AsSlice()...), to.AsSlice()...)
	}
	b = binary.BigEndian.AppendUint16(b, client.Port())
	b = binary.BigEndian.AppendUint16(b, server.Port())
	ssl := []byte{sslUsed, 0, 0, 0, 0}
	if name == "" {
		ssl[4] = 1 // nothing was verified
	} else {
		ssl[0] |= sslCert
		ssl = appendTLV(ssl, tlvSSLName, name)
	}
	b = appendTLV(b, tlvSSL, string(appendTLV(ssl, tlvSSLVersion, version)))
	if app != "" {
		b = appendTLV(b, TLVApp, app)
	}
	binary.BigEndian.PutUint16(b[14:], uint16(len(b)-16))
	return b
}

func appendTLV(b []byte, kind byte, value string) []byte {
	b = append(b, kind)
	b = binary.BigEndian.AppendUint16(b, uint16(len(value)))
	return append(b, value...)
}
