package ca

import (
	"crypto/x509"
	"net/url"
	"reflect"
	"testing"
)

func mustURL(t testing.TB, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// FuzzIdentify reads URI SANs that anybody may have put into a certificate.
// Whoever is recognised is recognised again from the URIs that this package
// would write for them.
func FuzzIdentify(f *testing.F) {
	for _, s := range [][2]string{
		{"tulle://cells/cell-1", "tulle://spaces/*"},
		{"tulle://cells/cell-1", "tulle://spaces/acme/prod"},
		{"tulle://cells/cell-1", "tulle://spaces/%2A"},
		{"tulle://cells/a%2Fb", "tulle://spaces/a%2Fb/c"},
		{"tulle://instances/app/0", "https://example.com/"},
		{"tulle://cells/a", "tulle://cells/b"},
		{"tulle:cells/a", "tulle://spaces"},
	} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, first, second string) {
		cert := &x509.Certificate{}
		for _, s := range []string{first, second} {
			u, err := url.Parse(s)
			if err != nil {
				return
			}
			cert.URIs = append(cert.URIs, u)
		}
		p, err := Identify(cert)
		if err != nil || p.Role != RoleCell {
			return
		}
		again := &x509.Certificate{URIs: []*url.URL{mustURL(t, uri(RoleCell, p.Name).String())}}
		for _, s := range p.Spaces {
			again.URIs = append(again.URIs, mustURL(t, s.uri().String()))
		}
		q, err := Identify(again)
		if err != nil || !reflect.DeepEqual(p, q) {
			t.Fatalf("%q %q: first %+v, then %+v, %v", first, second, p, q, err)
		}
	})
}
