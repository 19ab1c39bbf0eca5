package foundationtest

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// certs is one authority with a server and a client, all RSA: of TLS 1.2 the
// originals take one suite, which needs it.
type certs struct {
	dir    string
	pool   *x509.CertPool
	server tls.Certificate
}

func newCerts(t testing.TB) *certs {
	t.Helper()
	c := &certs{dir: t.TempDir(), pool: x509.NewCertPool()}
	ca, caKey := issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: "foundation CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign}, nil, nil)
	c.pool.AddCert(ca)
	c.write(t, "ca.pem", "CERTIFICATE", ca.Raw)
	server, key := issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: "policy-server.service.cf.internal"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv4(192, 0, 2, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, ca, caKey)
	c.server = tls.Certificate{Certificate: [][]byte{server.Raw}, PrivateKey: key}
	client, key := issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: "vxlan-policy-agent"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, ca, caKey)
	c.write(t, "client.pem", "CERTIFICATE", client.Raw)
	c.write(t, "client-key.pem", "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key))
	return c
}

func issue(t testing.TB, template, parent *x509.Certificate, by *rsa.PrivateKey) (*x509.Certificate, *rsa.PrivateKey) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber, template.NotBefore, template.NotAfter = serial, time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	if parent == nil {
		parent, by = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func (c *certs) write(t testing.TB, name, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(c.path(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (c *certs) path(name string) string { return filepath.Join(c.dir, name) }

// config is the originals' (reference: silk-controller, 1.1).
func (c *certs) config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256},
		Certificates: []tls.Certificate{c.server}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: c.pool,
	}
}
