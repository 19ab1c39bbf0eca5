package wireguard

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// KeyFile is the name of the private key in the state directory.
const KeyFile = "wireguard.key"

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

// LoadKey reads the cell's key from its state directory, or makes one there. The
// file is the owner's alone (0600), and one that others may read is refused: its
// key may be known.
func LoadKey(dir string) (PrivateKey, error) {
	path := filepath.Join(dir, KeyFile)
	k, err := readKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	if k, err = GenerateKey(); err != nil {
		return k, err
	}
	return k, writeKey(path, k)
}

func readKey(path string) (k PrivateKey, err error) {
	f, err := os.Open(path)
	if err != nil {
		return k, fmt.Errorf("tunnel key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return k, fmt.Errorf("tunnel key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return k, fmt.Errorf("tunnel key %s: mode %04o lets others read it; chmod 600 it, or remove it and a new one is made", path, info.Mode().Perm())
	}
	b := make([]byte, 64)
	n, _ := f.Read(b)
	raw, err := base64.StdEncoding.Strict().DecodeString(strings.TrimSuffix(string(b[:n]), "\n"))
	if err != nil || len(raw) != len(k.scalar) {
		return k, fmt.Errorf("tunnel key %s: not 32 bytes in base64", path)
	}
	copy(k.scalar[:], raw)
	return k, nil
}

// writeKey puts the key in place whole, or not at all.
func writeKey(path string, k PrivateKey) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), KeyFile+".") // mode 0600
	if err != nil {
		return fmt.Errorf("tunnel key: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("tunnel key: %w", err), os.Remove(f.Name()))
		}
	}()
	_, err = f.WriteString(base64.StdEncoding.EncodeToString(k.scalar[:]) + "\n")
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
