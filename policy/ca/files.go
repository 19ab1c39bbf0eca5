package ca

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
)

// Files of a cell's credential directory.
const (
	CellCertFile = "cell.pem"
	CellKeyFile  = "cell-key.pem"
	ServerCAFile = "server-ca.pem"
)

// Credential is a certificate with its private key, PEM encoded.
type Credential struct {
	CertPEM, KeyPEM []byte
}

// TLS is the credential as crypto/tls wants it.
func (c *Credential) TLS() (tls.Certificate, error) {
	return tls.X509KeyPair(c.CertPEM, c.KeyPEM)
}

// Certificate is the parsed leaf.
func (c *Credential) Certificate() (*x509.Certificate, error) {
	return parseCert(c.CertPEM)
}

// WriteCell writes what a cell daemon needs into dir: cell.pem, cell-key.pem
// (0600) and server-ca.pem, the root that it verifies the server against. It
// refuses to overwrite.
func WriteCell(dir string, c *Credential, server *Authority) error {
	err := writeNew(dir, map[string][]byte{
		CellCertFile: c.CertPEM,
		CellKeyFile:  c.KeyPEM,
		ServerCAFile: server.CertPEM(),
	})
	if err != nil {
		return fmt.Errorf("write cell credential: %w", err)
	}
	return nil
}

// writeNew creates dir and the files, none of which may exist: either all are
// written or those of this call are taken away again.
func writeNew(dir string, files map[string][]byte) (err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	sort.Strings(names)
	var written []string
	defer func() {
		if err != nil {
			for _, path := range written {
				err = errors.Join(err, os.Remove(path))
			}
		}
	}()
	for _, name := range names {
		path := filepath.Join(dir, name)
		mode := os.FileMode(0o644)
		if name == rootKey || name == CellKeyFile || name == LegacyKeyFile {
			mode = 0o600
		}
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
		if err != nil {
			return err
		}
		written = append(written, path)
		_, err = f.Write(files[name])
		if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func parseCert(data []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("no PEM block CERTIFICATE")
	}
	return x509.ParseCertificate(block.Bytes)
}

func readCert(path string) (*x509.Certificate, error) {
	all, err := readCerts(path)
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// readCerts reads one certificate or more.
func readCerts(path string) ([]*x509.Certificate, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var all []*x509.Certificate
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		all = append(all, cert)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("read %s: no PEM block CERTIFICATE", path)
	}
	return all, nil
}

// readTrust reads further certificates; that there are none is the usual case.
func readTrust(path string) ([]byte, error) {
	all, err := readCerts(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var b []byte
	for _, c := range all {
		b = append(b, encodeCert(c.Raw)...)
	}
	return b, err
}

func readKey(path string) (crypto.Signer, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(data)
	for block != nil && block.Type == "EC PARAMETERS" { // openssl ecparam -genkey writes it first
		block, rest = pem.Decode(rest)
	}
	if block == nil {
		return nil, fmt.Errorf("read %s: no PEM block PRIVATE KEY", path)
	}
	var key any
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("read %s: no PEM block PRIVATE KEY", path)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("read %s: not a signing key", path)
	}
	return signer, nil
}
