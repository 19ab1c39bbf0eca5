package ca

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// fresh is the suffix of a file that takes another's place.
const fresh = ".new"

// ReplaceCell puts a new certificate and key into a cell's credential directory.
// At any moment what is there is one credential or the other: the certificate's
// name is what counts, and loadCell finds the key that belongs to it.
func ReplaceCell(dir string, c *Credential) error {
	cert, key := filepath.Join(dir, CellCertFile), filepath.Join(dir, CellKeyFile)
	if err := finish(cert, key); err != nil {
		return fmt.Errorf("replace cell credential: %w", err)
	}
	for _, f := range []struct {
		path string
		text []byte
		mode os.FileMode
	}{{key + fresh, c.KeyPEM, 0o600}, {cert + fresh, c.CertPEM, 0o644}} {
		if err := writeSynced(f.path, f.text, f.mode); err != nil {
			return fmt.Errorf("replace cell credential: %w", err)
		}
	}
	if err := errors.Join(os.Rename(cert+fresh, cert), os.Rename(key+fresh, key)); err != nil {
		return fmt.Errorf("replace cell credential: %w", err)
	}
	return nil
}

// finish takes the second step of a replacement that was cut off after its first:
// the only key of the certificate lies where the next one is to be written.
func finish(cert, key string) error {
	if _, err := tls.LoadX509KeyPair(cert, key); err == nil {
		return nil
	}
	if _, err := tls.LoadX509KeyPair(cert, key+fresh); err != nil {
		return nil // there is nothing whole to keep
	}
	return os.Rename(key+fresh, key)
}

func writeSynced(path string, text []byte, mode os.FileMode) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Sync(), f.Close())
}

// loadCell reads the credential of the directory. A replacement that was cut off
// between its two steps has left the certificate's key beside the old one.
func loadCell(dir string) (*tls.Certificate, error) {
	cert, key := filepath.Join(dir, CellCertFile), filepath.Join(dir, CellKeyFile)
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		var again error
		if pair, again = tls.LoadX509KeyPair(cert, key+fresh); again != nil {
			return nil, fmt.Errorf("read cell credential: %w", err)
		}
	}
	return &pair, nil
}

// CellLife is when the credential of the directory was issued and when it ends.
func CellLife(dir string) (issued, ends time.Time, err error) {
	pair, err := loadCell(dir)
	if err != nil {
		return issued, ends, err
	}
	p, err := Identify(pair.Leaf)
	if err != nil {
		return issued, ends, fmt.Errorf("read cell credential: %w", err)
	}
	return p.Issued, pair.Leaf.NotAfter, nil
}

// WriteJoined writes what a cell got for its join token into dir, as WriteCell
// does.
func WriteJoined(dir string, c *Credential, serverRoot []byte) error {
	err := writeNew(dir, map[string][]byte{CellCertFile: c.CertPEM, CellKeyFile: c.KeyPEM, ServerCAFile: serverRoot})
	if err != nil {
		return fmt.Errorf("write cell credential: %w", err)
	}
	return nil
}

// CheckFree is an error where dir has a credential, or cannot take one.
func CheckFree(dir string) error {
	for _, name := range []string{CellCertFile, CellKeyFile, ServerCAFile} {
		path := filepath.Join(dir, name)
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s exists already; nothing was changed", path)
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	probe, err := os.CreateTemp(dir, ".probe-")
	if err != nil {
		return err
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}
