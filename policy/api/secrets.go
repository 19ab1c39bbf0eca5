package api

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
)

// Sizes of ML-KEM-768 (FIPS 203 section 8).
const (
	EncapsulationKeySize = 1184
	CiphertextSize       = 1088
)

// MaxSecrets bounds the offers and the receipts of one request, each.
const MaxSecrets = 256

// EncapsulationKey is a key of ML-KEM-768, by which another cell makes a secret that
// only the key's owner learns: its bytes. It is written in base64. "" is none.
type EncapsulationKey string

// ID names the key; "" is none's.
func (k EncapsulationKey) ID() string {
	if k == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(k))
	return hex.EncodeToString(sum[:16])
}

// MarshalText implements encoding.TextMarshaler.
func (k EncapsulationKey) MarshalText() ([]byte, error) {
	return base64.StdEncoding.AppendEncode(nil, []byte(k)), nil
}

// UnmarshalText implements encoding.TextUnmarshaler. The empty text is no key.
func (k *EncapsulationKey) UnmarshalText(b []byte) error {
	raw, err := base64.StdEncoding.Strict().DecodeString(string(b))
	if err != nil || len(raw) != 0 && len(raw) != EncapsulationKeySize {
		return fmt.Errorf("encapsulation key %.16q…: not %d bytes in base64", b, EncapsulationKeySize)
	}
	*k = EncapsulationKey(raw)
	return nil
}

// PairSecret is how two cells come to a secret of their own. The one with the lower
// name makes it with the other's EncapsulationKey and offers the ciphertext; the
// other takes the secret out. Who carries it learns nothing.
type PairSecret struct {
	From     string `json:"from"` // the lower name
	To       string `json:"to"`
	Sequence uint64 `json:"sequence"` // grows with each of the pair's, from 1
	KeyID    string `json:"key_id"`   // of To's EncapsulationKey
	// The tunnel keys of both that the secret is bound to.
	FromKey TunnelKey `json:"from_key"`
	ToKey   TunnelKey `json:"to_key"`
	// Ciphertext is for To alone; From is told without.
	Ciphertext []byte `json:"ciphertext,omitempty"`
	Held       bool   `json:"held,omitempty"` // To has it
}

// SecretsRequest is what a cell has to say of its pairs: those that it offers, From
// itself, and those that it has taken out, To itself, of which only From and
// Sequence count.
type SecretsRequest struct {
	Offers []PairSecret `json:"offers,omitempty"`
	Held   []PairSecret `json:"held,omitempty"`
}
