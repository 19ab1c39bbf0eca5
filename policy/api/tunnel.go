package api

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net/netip"
)

// DefaultWireGuardPort is where cells listen for WireGuard, and where a peer is
// taken to listen that was entered without a port.
const DefaultWireGuardPort = 51820

// TunnelKey is a WireGuard public key: a point of Curve25519. It is written in
// base64, as wg(8) does. The zero value is no key.
type TunnelKey [32]byte

// IsZero reports whether k is no key.
func (k TunnelKey) IsZero() bool { return k == TunnelKey{} }

// String is the key in base64, or "" for none.
func (k TunnelKey) String() string {
	if k.IsZero() {
		return ""
	}
	return base64.StdEncoding.EncodeToString(k[:])
}

// MarshalText implements encoding.TextMarshaler.
func (k TunnelKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. The empty text is no key.
func (k *TunnelKey) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*k = TunnelKey{}
		return nil
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(string(b))
	if err != nil || len(raw) != len(k) {
		return fmt.Errorf("tunnel key %q: not 32 bytes in base64", b)
	}
	*k = TunnelKey(raw)
	return nil
}

// TunnelNetwork is where the tunnel addresses of WireGuard peers lie: the range
// for networks between a provider and its customers (RFC 6598), which is routed
// nowhere. It is seen inside tunnels only.
var TunnelNetwork = netip.MustParsePrefix("100.64.0.0/10")

// LeasedTunnel is the tunnel address that belongs to a lease: the network's
// subnets of this size are numbered, and so are the addresses of TunnelNetwork.
// So among leases of one size who holds the lease has the address, and nobody else. It is the zero Addr
// where the subnet is no part of the network, or the network has more subnets of
// the size than TunnelNetwork has addresses.
func LeasedTunnel(network, subnet netip.Prefix) netip.Addr {
	bits := subnet.Bits() - network.Bits()
	if !network.IsValid() || !subnet.IsValid() || !network.Addr().Is4() || !network.Contains(subnet.Addr()) ||
		bits < 0 || bits > 32-TunnelNetwork.Bits() {
		return netip.Addr{}
	}
	index := (number(subnet.Addr()) - number(network.Masked().Addr())) >> (32 - subnet.Bits())
	if index == 0 {
		return netip.Addr{} // the network's first subnet is nobody's lease
	}
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], number(TunnelNetwork.Addr())+index)
	return netip.AddrFrom4(b)
}

func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}
