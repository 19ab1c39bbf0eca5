package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"path/filepath"
	"strconv"
	"time"
)

// Role is what a certificate's holder is; each role has a root of its own.
type Role string

// The three roles. Their names are the directories of the roots and the host
// part of the URI SAN.
const (
	RoleCell     Role = "cells"
	RoleInstance Role = "instances"
	RoleServer   Role = "server"
)

// Lifetimes. Roots outlive the hosts they were made on; a server renews its own
// certificate in memory, so that one can be short.
const (
	RootLifetime      = 20 * 365 * 24 * time.Hour
	CellLifetime      = 2 * 365 * 24 * time.Hour
	JoinedLifetime    = 90 * 24 * time.Hour // of a cell that joined, and so renews its credential itself
	ServerLifetime    = 90 * 24 * time.Hour
	Backdate          = time.Hour // for cells whose clock is behind
	serialBits        = 127
	rootCert, rootKey = "cert.pem", "key.pem"
	rootTrust         = "trust.pem" // further roots that are to be trusted, for a change of root
)

// ErrRole: the authority is not the one that signs this kind of certificate.
var ErrRole = errors.New("wrong root for this kind of certificate")

// Authority is one root with its key.
type Authority struct {
	role  Role
	cert  *x509.Certificate
	chain []*x509.Certificate // above cert, where that is an intermediate one
	trust []byte              // PEM, of trust.pem
	key   crypto.Signer
	now   func() time.Time

	issued time.Time // said of cells' credentials; zero: now
}

// IssuedAt is the authority that says of the credentials of cells that they were
// issued at t: revocations go by the clock of who keeps them, not by that of who signs.
func (a *Authority) IssuedAt(t time.Time) *Authority {
	b := *a
	b.issued = t
	return &b
}

// Roots is the control plane's three authorities.
type Roots struct {
	Cells, Instances, Server *Authority
}

// Create makes the three roots under dir: dir/cells, dir/instances and
// dir/server, each with cert.pem and key.pem (0600). It refuses to overwrite.
func Create(dir string) (*Roots, error) {
	var made [3]*Authority
	for i, role := range []Role{RoleCell, RoleInstance, RoleServer} {
		a, err := createRoot(filepath.Join(dir, string(role)), role, time.Now())
		if err != nil {
			return nil, err
		}
		made[i] = a
	}
	return &Roots{Cells: made[0], Instances: made[1], Server: made[2]}, nil
}

// Open reads the three roots that Create wrote under dir.
func Open(dir string) (*Roots, error) {
	var opened [3]*Authority
	for i, role := range []Role{RoleCell, RoleInstance, RoleServer} {
		a, err := openRoot(filepath.Join(dir, string(role)), role)
		if err != nil {
			return nil, err
		}
		opened[i] = a
	}
	return &Roots{Cells: opened[0], Instances: opened[1], Server: opened[2]}, nil
}

func createRoot(dir string, role Role, now time.Time) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key of root %s: %w", role, err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"Tulle"}, CommonName: "Tulle " + string(role) + " root"},
		NotBefore:             now.Add(-Backdate),
		NotAfter:              now.Add(RootLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make root %s: %w", role, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make root %s: %w", role, err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	if err := writeNew(dir, map[string][]byte{rootCert: encodeCert(der), rootKey: keyPEM}); err != nil {
		return nil, fmt.Errorf("write root %s: %w", role, err)
	}
	return &Authority{role: role, cert: cert, key: key, now: time.Now}, nil
}

// openRoot reads a root, which may be one that somebody else made: cert.pem is
// the certificate that signs, then those above it; the key is a file or a command
// (readSigner).
func openRoot(dir string, role Role) (*Authority, error) {
	certs, err := readCerts(filepath.Join(dir, rootCert))
	if err != nil {
		return nil, fmt.Errorf("open root %s: %w", role, err)
	}
	cert := certs[0]
	key, err := readSigner(dir, cert.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("open root %s: %w", role, err)
	}
	if pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("open root %s: %s does not hold the key of %s", role, rootKey, rootCert)
	}
	for i, c := range certs {
		if !c.IsCA {
			return nil, fmt.Errorf("open root %s: certificate %d of %s is not a CA certificate", role, i+1, rootCert)
		}
		if i > 0 {
			if err := certs[i-1].CheckSignatureFrom(c); err != nil {
				return nil, fmt.Errorf("open root %s: certificate %d of %s did not sign the one before: %w", role, i+1, rootCert, err)
			}
		}
	}
	trust, err := readTrust(filepath.Join(dir, rootTrust))
	if err != nil {
		return nil, fmt.Errorf("open root %s: %w", role, err)
	}
	return &Authority{role: role, cert: cert, chain: certs[1:], trust: trust, key: key, now: time.Now}, nil
}

// Pool holds this root alone.
func (a *Authority) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// CertPEM is the root's certificate, for those who verify against it.
func (a *Authority) CertPEM() []byte { return encodeCert(a.cert.Raw) }

// TrustPEM is what verifiers of this root's certificates trust: the top of its
// chain, and what trust.pem adds.
func (a *Authority) TrustPEM() []byte {
	top := a.cert
	if n := len(a.chain); n > 0 {
		top = a.chain[n-1]
	}
	return append(encodeCert(top.Raw), a.trust...)
}

// chainPEM goes behind a leaf: the certificate that signed it, and what is
// between that and the top.
func (a *Authority) chainPEM() []byte {
	pem := encodeCert(a.cert.Raw)
	for i, c := range a.chain {
		if i < len(a.chain)-1 {
			pem = append(pem, encodeCert(c.Raw)...)
		}
	}
	return pem
}

// IssueServer makes a server certificate for hosts: names or IP addresses.
// A lifetime of 0 is ServerLifetime.
func (a *Authority) IssueServer(hosts []string, lifetime time.Duration) (*Credential, error) {
	if a.role != RoleServer {
		return nil, fmt.Errorf("issue server certificate from root %s: %w", a.role, ErrRole)
	}
	if len(hosts) == 0 {
		return nil, errors.New("issue server certificate: no host name or address")
	}
	tmpl := &x509.Certificate{
		Subject:     pkix.Name{Organization: []string{"Tulle"}, CommonName: hosts[0]},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, h)
		}
	}
	return a.issue(tmpl, lifetime, ServerLifetime)
}

// IssueCell makes the credential of the cell name, which may host the given
// spaces (AnySpace, NamedSpace or SpaceGUID). A lifetime of 0 is CellLifetime.
func (a *Authority) IssueCell(name string, spaces []Space, lifetime time.Duration) (*Credential, error) {
	tmpl, err := a.cell(name, spaces)
	if err != nil {
		return nil, err
	}
	return a.issue(tmpl, lifetime, CellLifetime)
}

// SignCell is IssueCell for a key that was made on the cell: of the request, a
// PKCS #10 in PEM, only the key counts, which it must be signed with. The answer
// is the certificate in PEM.
func (a *Authority) SignCell(request []byte, name string, spaces []Space, lifetime time.Duration) ([]byte, error) {
	tmpl, err := a.cell(name, spaces)
	if err != nil {
		return nil, err
	}
	key, err := requestedKey(request)
	if err != nil {
		return nil, err
	}
	return a.sign(tmpl, key, lifetime, CellLifetime)
}

// cell is the template of a cell's certificate.
func (a *Authority) cell(name string, spaces []Space) (*x509.Certificate, error) {
	if a.role != RoleCell {
		return nil, fmt.Errorf("issue cell credential from root %s: %w", a.role, ErrRole)
	}
	if err := CheckCellName(name); err != nil {
		return nil, err
	}
	issued := a.issued
	if issued.IsZero() {
		issued = a.now()
	}
	tmpl := &x509.Certificate{
		Subject:     pkix.Name{Organization: []string{"Tulle"}, CommonName: name},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{uri(RoleCell, name), uri(issuedHost, strconv.FormatInt(issued.UnixMicro(), 10))},
	}
	for _, s := range spaces {
		tmpl.URIs = append(tmpl.URIs, s.uri())
	}
	return tmpl, nil
}

// issue makes a key and a certificate for it. A negative lifetime gives one that
// has expired, for tests.
func (a *Authority) issue(tmpl *x509.Certificate, lifetime, fallback time.Duration) (*Credential, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key of %s: %w", tmpl.Subject.CommonName, err)
	}
	cert, err := a.sign(tmpl, key.Public(), lifetime, fallback)
	if err != nil {
		return nil, err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return &Credential{CertPEM: cert, KeyPEM: keyPEM}, nil
}

// sign is issue for a key that is there.
func (a *Authority) sign(tmpl *x509.Certificate, key crypto.PublicKey, lifetime, fallback time.Duration) (_ []byte, err error) {
	if lifetime == 0 {
		lifetime = fallback
	}
	if tmpl.SerialNumber, err = newSerial(); err != nil {
		return nil, err
	}
	now := a.now()
	tmpl.NotBefore = now.Add(-Backdate)
	tmpl.NotAfter = now.Add(lifetime)
	if tmpl.NotAfter.After(a.cert.NotAfter) {
		tmpl.NotAfter = a.cert.NotAfter
	}
	if tmpl.KeyUsage == 0 {
		tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	}
	tmpl.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %s: %w", tmpl.Subject.CommonName, err)
	}
	return encodeCert(der), nil
}

func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), serialBits))
	if err != nil {
		return nil, fmt.Errorf("draw serial number: %w", err)
	}
	return n, nil
}
