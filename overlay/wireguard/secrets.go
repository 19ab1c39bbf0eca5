package wireguard

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// SecretsFile is the name of the file with a cell's preshared keys in its state
// directory.
const SecretsFile = "wireguard.psk"

// Secret is what a cell has with one peer.
type Secret struct {
	Sequence uint64         // of the newest key
	KeyID    string         // of the encapsulation key that it was made with
	Keys     []PresharedKey // as of Peer.PSK
	Settled  bool           // the peer has the newest, too
}

// storedSecret is a Secret in the file.
type storedSecret struct {
	Sequence uint64   `json:"sequence"`
	KeyID    string   `json:"key_id"`
	Keys     []string `json:"keys"`
	Settled  bool     `json:"settled,omitempty"`
}

// LoadSecrets reads the cell's preshared keys, by peer. Without a file there are
// none.
func LoadSecrets(dir string) (map[string]Secret, error) {
	path := filepath.Join(dir, SecretsFile)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]Secret{}, nil
	}
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		err = fmt.Errorf("mode %04o lets others read it; remove it, and new ones are made", info.Mode().Perm())
	}
	var text []byte
	if err == nil {
		text, err = os.ReadFile(path)
	}
	var stored map[string]storedSecret
	if err == nil {
		err = json.Unmarshal(text, &stored)
	}
	secrets := make(map[string]Secret, len(stored))
	for peer, s := range stored {
		out := Secret{Sequence: s.Sequence, KeyID: s.KeyID, Settled: s.Settled}
		for _, k := range s.Keys {
			raw, bad := base64.StdEncoding.Strict().DecodeString(k)
			if bad != nil || len(raw) != len(PresharedKey{}) {
				err = errors.Join(err, fmt.Errorf("a key with %q is not 32 bytes in base64", peer))
				continue
			}
			out.Keys = append(out.Keys, PresharedKey(raw))
		}
		if len(out.Keys) > MaxPSK {
			err = errors.Join(err, fmt.Errorf("%d keys with %q", len(out.Keys), peer))
		}
		secrets[peer] = out
	}
	if err != nil {
		return nil, fmt.Errorf("preshared keys %s: %w", path, err)
	}
	return secrets, nil
}

// SaveSecrets puts the cell's preshared keys on the disk in the place of what is
// there, whole or not at all.
func SaveSecrets(dir string, secrets map[string]Secret) error {
	stored := make(map[string]storedSecret, len(secrets))
	for peer, s := range secrets {
		out := storedSecret{Sequence: s.Sequence, KeyID: s.KeyID, Settled: s.Settled, Keys: []string{}}
		for _, k := range s.Keys {
			out.Keys = append(out.Keys, base64.StdEncoding.EncodeToString(k[:]))
		}
		stored[peer] = out
	}
	text, err := json.Marshal(stored)
	path := filepath.Join(dir, SecretsFile)
	if err == nil {
		err = replace(path, string(text)+"\n")
	}
	if err != nil {
		return fmt.Errorf("preshared keys %s: %w", path, err)
	}
	return nil
}

// Binding is what a preshared key is of, besides the secret that was encapsulated:
// who, between which tunnel keys, which one, by which key and ciphertext.
type Binding struct {
	From, To         string
	FromKey, ToKey   PublicKey
	Sequence         uint64
	EncapsulationKey []byte
	Ciphertext       []byte
}

// bindingLabel begins what is derived from; another protocol has another.
const bindingLabel = "tulle pair secret 1"

// Derive makes the preshared key of a secret that was encapsulated (HKDF, RFC 5869,
// with SHA-256). Whoever differs in any part of the binding has another key.
func (b Binding) Derive(shared []byte) (PresharedKey, error) {
	info := []byte(bindingLabel)
	for _, part := range [][]byte{[]byte(b.From), []byte(b.To), b.FromKey[:], b.ToKey[:], b.EncapsulationKey, b.Ciphertext} {
		sum := sha256.Sum256(part) // of one length: no part can reach into the next
		info = append(info, sum[:]...)
	}
	info = binary.BigEndian.AppendUint64(info, b.Sequence)
	raw, err := hkdf.Key(sha256.New, shared, nil, string(info), len(PresharedKey{}))
	if err != nil {
		return PresharedKey{}, fmt.Errorf("preshared key: %w", err)
	}
	return PresharedKey(raw), nil
}
