package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// ownCA replaces a root by an intermediate certificate under a root that somebody
// else made, with the key in dir/key.pem.
func ownCA(t *testing.T, dir string) (root *x509.Certificate) {
	t.Helper()
	make := func(name string, parent *x509.Certificate, by crypto.Signer) (*x509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign}
		if parent == nil {
			parent, by = tmpl, key
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), by)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert, key
	}
	root, rootKey := make("corporate root", nil, nil)
	middle, key := make("corporate instances", root, rootKey)
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{
		"cert.pem": append(encodeCert(middle.Raw), encodeCert(root.Raw)...),
		"key.pem":  pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// signed has the root sign for an instance and verifies the answer by its trust.
func signed(t *testing.T, a *Authority) *x509.Certificate {
	t.Helper()
	cred, err := a.IssueInstance("app", "web-0", 0)
	if err != nil {
		t.Fatal(err)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	if !roots.AppendCertsFromPEM(a.TrustPEM()) {
		t.Fatal("no trust")
	}
	between.AppendCertsFromPEM(cred.CertPEM)
	leaf, err := cred.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: "web-0"}); err != nil {
		t.Errorf("verify: %v", err)
	}
	return leaf
}

func TestInstancesUnderAnOwnCA(t *testing.T) {
	_, dir := create(t)
	instances := filepath.Join(dir, "instances")
	former, err := os.ReadFile(filepath.Join(instances, "cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	root := ownCA(t, instances)
	// A change of roots: the former one is trusted for a while.
	if err := os.WriteFile(filepath.Join(instances, "trust.pem"), former, 0o600); err != nil {
		t.Fatal(err)
	}
	roots, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	signed(t, roots.Instances)
	if want := string(encodeCert(root.Raw)) + string(former); string(roots.Instances.TrustPEM()) != want {
		t.Error("trusted are not the new root and the former one")
	}
	// A chain in the wrong order does not hold.
	if err := os.WriteFile(filepath.Join(instances, "cert.pem"), append(roots.Instances.CertPEM(), former...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "did not sign") {
		t.Errorf("a foreign certificate above: %v", err)
	}
}

// The key may be where only a command reaches it; openssl plays the KMS.
func TestInstanceKeyBehindACommand(t *testing.T) {
	_, dir := create(t)
	instances := filepath.Join(dir, "instances")
	if err := os.Rename(filepath.Join(instances, "key.pem"), filepath.Join(dir, "elsewhere.pem")); err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(dir, "kms.sh")
	text := "#!/bin/sh\n[ \"$2\" = SHA-256 ] || exit 3\nexec openssl pkeyutl -sign -inkey \"$1\" -pkeyopt digest:sha256\n"
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	write := func(line string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(instances, "key.command"), []byte(line), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(script + " " + filepath.Join(dir, "elsewhere.pem") + "\n")
	roots, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	signed(t, roots.Instances)

	write(script + " /nowhere\n")
	if roots, err = Open(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := roots.Instances.IssueInstance("app", "web-0", 0); err == nil || !strings.Contains(err.Error(), "kms.sh") || !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("a KMS that refuses: %v, want its name and what it said", err)
	}
	write("\n")
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "names no command") {
		t.Errorf("an empty command: %v", err)
	}
}

func TestInstanceNames(t *testing.T) {
	roots, _ := create(t)
	i := Instance{Container: strings.Repeat("c", 80), App: "a b/ü", Space: "s", Org: "o",
		Address: netip.MustParseAddr("10.255.1.2"), Names: []string{"web.apps.internal", "www.apps.internal"}}
	_, csr, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	text, err := roots.Instances.SignInstance(i, "cells.example", csr, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := (&Credential{CertPEM: text}).Certificate()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append(i.Names, i.Container, "10.255.1.2") {
		if err := leaf.VerifyHostname(name); err != nil && name != i.Container { // no label is so long
			t.Error(err)
		}
	}
	if len(leaf.Subject.CommonName) != 64 {
		t.Errorf("common name of %d characters", len(leaf.Subject.CommonName))
	}
	p, err := Identify(leaf)
	if err != nil || p.Role != RoleInstance || !strings.HasPrefix(p.Name, "a b/ü/ccc") {
		t.Errorf("identified as %+v, %v", p, err)
	}
}
