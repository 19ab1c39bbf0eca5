package controlplane

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"tulle/cmd/internal/demo"
	"tulle/policy/api"
	"tulle/policy/store/pgrun"
)

// network has room for thousands of cells of 254 containers each.
var network = netip.MustParsePrefix("10.128.0.0/9")

// site is a policy server under measurement, and its database.
type site struct {
	*demo.World
	postgres *pgrun.Server // nil: SQLite
	pool     *x509.CertPool
	token    string
}

// newSite starts a server; database is "sqlite" or "postgres", which keeps what it
// commits (fsync is on) like SQLite does.
func newSite(ctx context.Context, database string) (s *site, err error) {
	world, err := demo.NewWorld(demo.Options{Network: network})
	if err != nil {
		return nil, err
	}
	s = &site{World: world}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	cert, key, err := s.certify()
	if err != nil {
		return s, err
	}
	settings := []string{"external_tls: {cert: " + cert + ", key: " + key + "}", "log_level: warn"}
	if database == postgres {
		if s.postgres, err = pgrun.Start("fsync = on"); err != nil {
			return s, err
		}
		url, err := s.postgres.Database()
		if err != nil {
			return s, err
		}
		settings = append(settings, "database: "+url)
	}
	if _, err = s.StartServer(ctx, settings...); err != nil {
		return s, err
	}
	token, err := os.ReadFile(s.Server.TokenFile())
	s.token = strings.TrimSpace(string(token))
	return s, err
}

// Close ends the server and takes everything away.
func (s *site) Close() error {
	err := s.World.Close()
	if s.postgres != nil {
		err = errors.Join(err, s.postgres.Close())
	}
	return err
}

// certify makes the certificate of the external API.
func (s *site) certify() (certFile, keyFile string, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "tulle-bench"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return "", "", err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", "", err
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	s.pool = x509.NewCertPool()
	s.pool.AppendCertsFromPEM(cert)
	certFile, keyFile = filepath.Join(s.Dir, "api.pem"), filepath.Join(s.Dir, "api-key.pem")
	// The server's user reads both; the world's directory is nobody else's.
	return certFile, keyFile, errors.Join(os.WriteFile(certFile, cert, 0o644),
		os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o644))
}

// user is one client of the external API with a connection of its own.
type user struct {
	base, token string
	http        http.Client
}

func (s *site) user() *user {
	return &user{base: "https://" + s.Server.External, token: s.token, http: http.Client{
		Timeout:   5 * time.Minute,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.pool, MinVersion: tls.VersionTLS12}},
	}}
}

// do sends a request and gives the body of an answer with status 200.
func (u *user) do(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, u.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer "+u.token)
	answer, err := u.http.Do(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s: %.200s", method, path, answer.Status, text)
	}
	return text, err
}

func (u *user) close() { u.http.CloseIdleConnections() }

// Paths of the original's API.
const (
	pathPolicies = "/networking/v1/external/policies"
	pathDelete   = "/networking/v1/external/policies/delete"
)

func encode(ps ...api.Policy) ([]byte, error) { return json.Marshal(api.Policies{Policies: ps}) }

// rss reads a figure of the process's memory, such as VmRSS or VmHWM, in MiB.
func rss(pid int, field string) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			var kib float64
			if _, err := fmt.Sscan(rest, &kib); err != nil {
				return 0, err
			}
			return kib / 1024, nil
		}
	}
	return 0, fmt.Errorf("process %d has no %s", pid, field)
}
