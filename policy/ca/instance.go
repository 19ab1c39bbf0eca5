package ca

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"tulle/policy"
)

// InstanceLifetime of a container's certificate. The cell renews it at half.
const InstanceLifetime = 24 * time.Hour

// DefaultTrustDomain is the SPIFFE trust domain where none is configured.
const DefaultTrustDomain = "tulle.internal"

// maxCommonName is X.520's ub-common-name.
const maxCommonName = 64

// Instance is what a container's certificate says of it.
type Instance struct {
	Container  string     // the instance's GUID: common name and first DNS name
	Address    netip.Addr // in the overlay, IPv4; its twin is its too. May be invalid
	Names      []string   // of its app's internal routes
	App        policy.AppID
	Space, Org string // GUIDs; "" where the registry has none
}

// SignInstance makes the certificate of a container for the key of a PKCS #10
// request, PEM. The request proves that its sender has the key; what it says
// besides counts for nothing. The answer is PEM, leaf and chain. A lifetime of 0
// is InstanceLifetime.
func (a *Authority) SignInstance(i Instance, trustDomain string, request []byte, lifetime time.Duration) ([]byte, error) {
	if a.role != RoleInstance {
		return nil, fmt.Errorf("sign instance certificate by root %s: %w", a.role, ErrRole)
	}
	key, err := requestedKey(request)
	if err != nil {
		return nil, err
	}
	tmpl, err := i.template(trustDomain)
	if err != nil {
		return nil, err
	}
	cert, err := a.sign(tmpl, key, lifetime, InstanceLifetime)
	if err != nil {
		return nil, err
	}
	return append(cert, a.chainPEM()...), nil
}

// template has the fields that Cloud Foundry's instance identity and its
// container-to-container certificates have, and one SPIFFE ID.
func (i Instance) template(trustDomain string) (*x509.Certificate, error) {
	if i.App == "" || i.Container == "" {
		return nil, errors.New("instance certificate: application or instance is empty")
	}
	id := &url.URL{Scheme: "spiffe", Host: trustDomain}
	var units []string
	for _, part := range []struct{ path, unit, guid string }{
		{"org", "organization", i.Org}, {"space", "space", i.Space}, {"app", "app", string(i.App)},
	} {
		if part.guid != "" {
			id = id.JoinPath(part.path, escapeSegment(part.guid))
			units = append([]string{part.unit + ":" + part.guid}, units...)
		}
	}
	tmpl := &x509.Certificate{
		Subject:     pkix.Name{CommonName: i.Container[:min(len(i.Container), maxCommonName)], OrganizationalUnit: units},
		DNSNames:    []string{i.Container},
		URIs:        []*url.URL{id},
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageKeyAgreement,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if i.Address.IsValid() {
		tmpl.IPAddresses = []net.IP{i.Address.AsSlice()}
		if i.Address.Is4() {
			tmpl.IPAddresses = append(tmpl.IPAddresses, policy.Twin(i.Address).AsSlice())
		}
	}
	for _, n := range i.Names {
		if n != i.Container {
			tmpl.DNSNames = append(tmpl.DNSNames, n)
		}
	}
	return tmpl, nil
}

// IssueInstance makes the certificate of one container of app with a key of its
// own. A lifetime of 0 is InstanceLifetime, a negative one has expired.
func (a *Authority) IssueInstance(app policy.AppID, instance string, lifetime time.Duration) (*Credential, error) {
	key, request, err := NewRequest()
	if err != nil {
		return nil, err
	}
	cert, err := a.SignInstance(Instance{Container: instance, App: app}, DefaultTrustDomain, request, lifetime)
	if err != nil {
		return nil, err
	}
	return &Credential{CertPEM: cert, KeyPEM: key}, nil
}

// instanceOf is the app that a SPIFFE ID of ours names.
func instanceOf(u *url.URL) (policy.AppID, error) {
	parts, err := segments(u)
	if err == nil && len(parts) >= 2 && len(parts)%2 == 0 && parts[len(parts)-2] == "app" {
		return policy.AppID(parts[len(parts)-1]), nil
	}
	return "", fmt.Errorf("%s is not understood", u)
}

// CheckTrustDomain refuses what SPIFFE has no place for.
func CheckTrustDomain(name string) error {
	if name == "" || len(name) > 255 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789.-_") != "" {
		return fmt.Errorf("trust domain %q: 1 to 255 lower-case letters, digits, dots, dashes and underscores", name)
	}
	return nil
}
