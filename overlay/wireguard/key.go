package wireguard

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"fmt"
)

// PublicKey says who a peer is: a point of Curve25519.
type PublicKey [32]byte

// String is the key in base64, as wg(8) writes it.
func (k PublicKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// PrivateKey is a cell's own. It has no String, so that no log shows it.
type PrivateKey struct{ scalar [32]byte }

// GenerateKey makes a key.
func GenerateKey() (PrivateKey, error) {
	var k PrivateKey
	if _, err := rand.Read(k.scalar[:]); err != nil {
		return k, fmt.Errorf("make a tunnel key: %w", err)
	}
	// As RFC 7748 section 5 has it, and as every WireGuard stores it.
	k.scalar[0] &= 248
	k.scalar[31] = k.scalar[31]&127 | 64
	return k, nil
}

// IsZero reports whether k is no key.
func (k PrivateKey) IsZero() bool { return k == PrivateKey{} }

// Public is the key's public half.
func (k PrivateKey) Public() PublicKey {
	private, err := ecdh.X25519().NewPrivateKey(k.scalar[:])
	if err != nil {
		panic("X25519 takes any 32 bytes: " + err.Error())
	}
	return PublicKey(private.PublicKey().Bytes())
}

// Format keeps the key out of anything that is printed.
func (k PrivateKey) Format(f fmt.State, _ rune) { fmt.Fprint(f, "(private key)") }
