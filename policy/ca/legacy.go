package ca

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// RoleLegacy is the role of the programs that Tulle stands in for: the
// vxlan-policy-agent, the silk-daemon and its bootstrap. Who has it is told by
// the root that a certificate goes back to, never by the names in it: such
// certificates name no cell, and a root brought from elsewhere may have signed
// any name.
const RoleLegacy Role = "legacy"

// Files of a legacy client's credential directory.
const (
	LegacyCertFile = "client.pem"
	LegacyKeyFile  = "client-key.pem"
)

// CreateLegacy makes the legacy root in dir/legacy, beside the three of Create.
// It refuses to overwrite.
func CreateLegacy(dir string) (*Authority, error) {
	return createRoot(filepath.Join(dir, string(RoleLegacy)), RoleLegacy, time.Now())
}

// OpenLegacy reads dir/legacy. A root that was brought from elsewhere may be
// without its key: it verifies and cannot issue. fs.ErrNotExist when there is no
// legacy root.
func OpenLegacy(dir string) (*Authority, error) {
	dir = filepath.Join(dir, string(RoleLegacy))
	if _, err := os.Lstat(filepath.Join(dir, rootKey)); !errors.Is(err, fs.ErrNotExist) {
		return openRoot(dir, RoleLegacy)
	}
	cert, err := readCert(filepath.Join(dir, rootCert))
	if err != nil {
		return nil, fmt.Errorf("open root %s: %w", RoleLegacy, err)
	}
	if !cert.IsCA {
		return nil, fmt.Errorf("open root %s: %s is not a CA certificate", RoleLegacy, rootCert)
	}
	return &Authority{role: RoleLegacy, cert: cert, now: time.Now}, nil
}

// IssueLegacy makes the credential of a legacy client; the name is for logs. A
// lifetime of 0 is CellLifetime.
func (a *Authority) IssueLegacy(name string, lifetime time.Duration) (*Credential, error) {
	switch {
	case a.role != RoleLegacy:
		return nil, fmt.Errorf("issue legacy credential from root %s: %w", a.role, ErrRole)
	case a.key == nil:
		return nil, errors.New("issue legacy credential: the legacy root has no key here; whoever made it issues its certificates")
	}
	if err := CheckCellName(name); err != nil {
		return nil, err
	}
	return a.issue(&x509.Certificate{
		Subject:     pkix.Name{Organization: []string{"Tulle"}, CommonName: name},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{uri(RoleLegacy, name)},
	}, lifetime, CellLifetime)
}

// WriteLegacy writes what a legacy client is configured with into dir:
// client.pem, client-key.pem (0600) and server-ca.pem. It refuses to overwrite.
func WriteLegacy(dir string, c *Credential, server *Authority) error {
	err := writeNew(dir, map[string][]byte{
		LegacyCertFile: c.CertPEM,
		LegacyKeyFile:  c.KeyPEM,
		ServerCAFile:   server.CertPEM(),
	})
	if err != nil {
		return fmt.Errorf("write legacy credential: %w", err)
	}
	return nil
}

// Issued reports whether the verified certificate of the connection goes back to
// this root. One that goes back to another root as well counts.
func (a *Authority) Issued(cs *tls.ConnectionState) bool {
	if a == nil || cs == nil {
		return false
	}
	for _, chain := range cs.VerifiedChains {
		if len(chain) > 0 && chain[len(chain)-1].Equal(a.cert) {
			return true
		}
	}
	return false
}

// InternalTLS is ServerTLS that lets clients of the legacy root in, too; what
// they may do there is the server's to check, by Issued.
func InternalTLS(cells, legacy *Authority, certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)) *tls.Config {
	conf := ServerTLS(cells, certificate)
	conf.ClientCAs.AddCert(legacy.cert)
	ofCell := conf.VerifyConnection
	conf.VerifyConnection = func(cs tls.ConnectionState) error {
		if legacy.Issued(&cs) {
			return nil
		}
		return ofCell(cs)
	}
	return conf
}

// LegacyTLS configures the lease API: TLS 1.2 or newer and a client certificate
// of the legacy root. A cell's certificate gets a TLS alert.
func LegacyTLS(legacy *Authority, certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)) *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: certificate,
		ClientAuth:     tls.RequireAndVerifyClientCert,
		ClientCAs:      legacy.Pool(),
	}
}
