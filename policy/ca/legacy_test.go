package ca

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func createLegacy(t *testing.T, dir string) *Authority {
	t.Helper()
	a, err := CreateLegacy(dir)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestLegacyRootIsMadeOnceAndOpened(t *testing.T) {
	_, dir := create(t)
	if _, err := OpenLegacy(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no legacy root: %v, want %v", err, fs.ErrNotExist)
	}
	made := createLegacy(t, dir)
	if _, err := CreateLegacy(dir); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second one: %v, want %v", err, fs.ErrExist)
	}
	opened, err := OpenLegacy(dir)
	if err != nil || !opened.cert.Equal(made.cert) || opened.key == nil {
		t.Errorf("opened %+v, %v", opened, err)
	}
	if _, err := Open(dir); err != nil {
		t.Errorf("the three roots beside it: %v", err)
	}
	if _, err := opened.IssueCell("cell-1", nil, 0); !errors.Is(err, ErrRole) {
		t.Errorf("a cell's credential from the legacy root: %v, want %v", err, ErrRole)
	}
}

// An operator may bring the root of a running foundation, without its key.
func TestLegacyRootWithoutItsKeyVerifiesOnly(t *testing.T) {
	_, dir := create(t)
	made := createLegacy(t, dir)
	if err := os.Remove(filepath.Join(dir, "legacy", "key.pem")); err != nil {
		t.Fatal(err)
	}
	opened, err := OpenLegacy(dir)
	if err != nil || !opened.cert.Equal(made.cert) {
		t.Fatalf("opened %+v, %v", opened, err)
	}
	if _, err := opened.IssueLegacy("agent", 0); err == nil || !strings.Contains(err.Error(), "no key here") {
		t.Errorf("issued without a key: %v", err)
	}
}

func TestLegacyHandshakes(t *testing.T) {
	roots, dir := create(t)
	legacy := createLegacy(t, dir)
	get, err := roots.Server.Certificates([]string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	agent, err := legacy.IssueLegacy("agent", 0)
	if err != nil {
		t.Fatal(err)
	}
	late, err := legacy.IssueLegacy("agent", -time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	inst, err := roots.Instances.IssueInstance("app", "0", 0)
	if err != nil {
		t.Fatal(err)
	}
	cell := issueCell(t, roots.Cells, "cell-1", 0, AnySpace)
	const unknown = "unknown certificate authority"
	for _, tt := range []struct {
		name             string
		client           *Credential
		internal, leases string // the error; "": passes
	}{
		{"agent", agent, "", ""},
		{"expired agent", late, "expired certificate", "expired certificate"},
		{"cell", cell, "", unknown},
		{"instance", inst, unknown, unknown},
		{"nobody", nil, "certificate required", "certificate required"},
	} {
		for what, c := range map[string]struct {
			server *tls.Config
			err    string
		}{
			"internal": {InternalTLS(roots.Cells, legacy, get), tt.internal},
			"leases":   {LegacyTLS(legacy, get), tt.leases},
		} {
			for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
				conf := &tls.Config{RootCAs: roots.Server.Pool(), ServerName: "127.0.0.1", MaxVersion: version}
				if tt.client != nil {
					pair, err := tt.client.TLS()
					if err != nil {
						t.Fatal(err)
					}
					conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
				}
				if tt.client == nil && version == tls.VersionTLS12 {
					continue // the alert has another name there
				}
				err := handshake(t, c.server, conf)
				if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
					t.Errorf("%s at %s: %v, want %q", tt.name, what, err, c.err)
				}
			}
		}
	}
}

// Who a client is is told by its root: the names in a certificate of the legacy
// root may be anything.
func TestIssuedGoesByTheRoot(t *testing.T) {
	roots, dir := create(t)
	legacy := createLegacy(t, dir)
	forged, err := legacy.issue(&x509.Certificate{
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{uri(RoleCell, "cell-1"), AnySpace.uri()},
	}, 0, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	both := roots.Cells.Pool()
	both.AddCert(legacy.cert)
	state := func(c *Credential) *tls.ConnectionState {
		cert, err := c.Certificate()
		if err != nil {
			t.Fatal(err)
		}
		chains, err := cert.Verify(x509.VerifyOptions{Roots: both, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		if err != nil {
			t.Fatal(err)
		}
		return &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}, VerifiedChains: chains}
	}
	if !legacy.Issued(state(forged)) {
		t.Error("a cell's name made a legacy certificate a cell's")
	}
	if legacy.Issued(state(issueCell(t, roots.Cells, "cell-1", 0, AnySpace))) {
		t.Error("a cell's certificate was taken for a legacy one")
	}
	if (*Authority)(nil).Issued(state(forged)) || legacy.Issued(nil) || legacy.Issued(&tls.ConnectionState{}) {
		t.Error("issued without a root, a connection or a chain")
	}
}
