package ca

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// ServerTLS configures the internal API: TLS 1.2 or newer, HTTP/2, a client
// certificate of the cells root that names a cell. Whoever has none, or one of
// another root, gets a TLS alert. certificate is what the server shows;
// Certificates gives one that renews itself.
func ServerTLS(cells *Authority, certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)) *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: certificate,
		ClientAuth:     tls.RequireAndVerifyClientCert,
		ClientCAs:      cells.Pool(),
		// Also called for a resumed session.
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := PeerOf(&cs, RoleCell)
			return err
		},
	}
}

// PeerOf is the verified party at the other end of a connection, which must
// have the role.
func PeerOf(cs *tls.ConnectionState, role Role) (Peer, error) {
	if cs == nil || len(cs.PeerCertificates) == 0 {
		return Peer{}, errors.New("no client certificate")
	}
	p, err := Identify(cs.PeerCertificates[0])
	if err != nil {
		return Peer{}, err
	}
	if p.Role != role {
		return Peer{}, fmt.Errorf("certificate of %s %s where one of %s is asked", p.Role, p.Name, role)
	}
	return p, nil
}

// Certificates gives the server a certificate for hosts that it issues itself
// and renews when two thirds of its life are over. The function is for
// tls.Config.GetCertificate.
func (a *Authority) Certificates(hosts []string) (func(*tls.ClientHelloInfo) (*tls.Certificate, error), error) {
	var (
		mu      sync.Mutex // guards current and renew
		current *tls.Certificate
		renew   time.Time
	)
	get := func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		if now := a.now(); current == nil || !now.Before(renew) {
			cred, err := a.IssueServer(hosts, ServerLifetime)
			if err != nil {
				return nil, err
			}
			pair, err := cred.TLS()
			if err != nil {
				return nil, err
			}
			current, renew = &pair, now.Add(ServerLifetime*2/3)
		}
		return current, nil
	}
	if _, err := get(nil); err != nil {
		return nil, err
	}
	return get, nil
}

// CellTLS configures a cell's client from its credential directory and says
// which cell it is. The server is verified against the server root alone. The
// certificate is read again at each handshake, so that a renewed one needs no
// restart.
func CellTLS(dir string) (*tls.Config, Peer, error) {
	roots := x509.NewCertPool()
	pem, err := os.ReadFile(filepath.Join(dir, ServerCAFile))
	if err != nil {
		return nil, Peer{}, fmt.Errorf("read cell credential: %w", err)
	}
	if !roots.AppendCertsFromPEM(pem) {
		return nil, Peer{}, fmt.Errorf("read cell credential: %s holds no certificate", ServerCAFile)
	}
	pair, err := loadCell(dir)
	if err != nil {
		return nil, Peer{}, err
	}
	peer, err := Identify(pair.Leaf)
	if err != nil {
		return nil, Peer{}, fmt.Errorf("read cell credential: %w", err)
	}
	if peer.Role != RoleCell {
		return nil, Peer{}, fmt.Errorf("read cell credential: %s is of %s, not of a cell", CellCertFile, peer.Role)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		RootCAs:    roots,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return loadCell(dir)
		},
	}, peer, nil
}
