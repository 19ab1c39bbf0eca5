package tlsproxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// Identity says how the app learns who its caller is.
type Identity string

// Identities.
const (
	IdentityNone  Identity = ""      // not at all
	IdentityProxy Identity = "proxy" // PROXY protocol v2, before the first byte
	IdentityXFCC  Identity = "xfcc"  // X-Forwarded-Client-Cert, in each HTTP/1.1 request
)

// Caller is who is at the other end of a connection, by the cell's word: GUIDs. The
// app's is always there.
type Caller struct{ App, Space, Org string }

// Site is one container's port, and what is behind it. Its functions are called
// from many goroutines; none but Certificate and Dial need be there.
type Site struct {
	Name string // for the log

	// Certificate is asked in each handshake.
	Certificate func(ctx context.Context) (*tls.Certificate, error)
	// Dial reaches the app.
	Dial func(ctx context.Context) (net.Conn, error)
	// Caller is asked at each accept; who is unknown is closed.
	Caller func(ctx context.Context, peer netip.AddrPort) (Caller, error)
	// Clients are the roots of client certificates; where it is there, one is
	// required, and its app must be the Caller's.
	Clients  func() *x509.CertPool
	Identity Identity

	config *tls.Config // the proxy's, by Serve
}

var (
	errBackend  = errors.New("the app cannot be reached")
	errCertless = errors.New("the container has no certificate")
	errClient   = errors.New("client certificate")
)

// tlsConfig is a site's own: session tickets of one are none of another.
func (p *Proxy) tlsConfig(s *Site) *tls.Config {
	c := &tls.Config{
		MinVersion:   tls.VersionTLS12,
		MaxVersion:   tls.VersionTLS13,
		CipherSuites: suites(),
		// Records of full size from the first byte: what is small is answered in one
		// anyway, and what is large is not for browsers that paint half of it.
		DynamicRecordSizingDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			ctx, cancel := context.WithTimeout(p.ctx, p.o.HandshakeTimeout)
			defer cancel()
			cert, err := s.Certificate(ctx)
			if err != nil {
				return nil, fmt.Errorf("%w: %w", errCertless, err)
			}
			return cert, nil
		},
		GetConfigForClient: p.reachBackend,
	}
	if s.Identity == IdentityXFCC {
		c.NextProtos = []string{"http/1.1"} // a client that has HTTP/2 alone learns it in the handshake
	}
	if s.Clients != nil {
		// Asked for here, judged in verifyClient: the roots change while the tickets stay.
		c.ClientAuth = tls.RequestClientCert
	}
	return c
}

// verifyClient judges a client's certificate, of a resumed session too. It is
// called before a byte of the client's is carried; an error is an alert to it.
func (c *conn) verifyClient(state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return fmt.Errorf("%w: there is none", errClient)
	}
	leaf, between := state.PeerCertificates[0], x509.NewCertPool()
	for _, i := range state.PeerCertificates[1:] {
		between.AddCert(i)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: c.site.Clients(), Intermediates: between,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return fmt.Errorf("%w: %w", errClient, err)
	}
	app := appOf(leaf)
	if app == "" {
		return fmt.Errorf("%w: it names no app", errClient)
	}
	if c.site.Caller != nil && app != c.caller.App {
		return fmt.Errorf("%w: it is app %s's, the connection is app %s's", errClient, app, c.caller.App)
	}
	if c.site.Caller == nil {
		c.caller.App = app
	}
	c.client = leaf
	return nil
}

// appOf is the app of an instance's certificate: the unit "app:GUID", as in Cloud
// Foundry's instance identity.
func appOf(leaf *x509.Certificate) string {
	for _, unit := range leaf.Subject.OrganizationalUnit {
		if app, ok := strings.CutPrefix(unit, "app:"); ok {
			return app
		}
	}
	return ""
}
