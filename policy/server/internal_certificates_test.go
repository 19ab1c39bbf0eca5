package server_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"strings"
	"testing"
	"time"

	"tulle/policy"
	"tulle/policy/api"
)

func request(t *testing.T, key crypto.Signer) string {
	t.Helper()
	// What a request says besides its key must not get into the certificate.
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"evil.apps.internal"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}))
}

// The server signs for a cell's own, registered containers, and what it signs is
// what the registry says of them.
func TestCertificatesOfOwnEndpointsOnly(t *testing.T) {
	r := newCellsRig(t)
	one, two := r.cell("one", "*"), r.cell("two", "*")
	var l api.Lease
	r.put(one, cellPath+"one/lease", leaseRequest, &l)
	other := leaseRequest
	other.Port++
	r.put(two, cellPath+"two/lease", other, &api.Lease{})
	address := l.Subnet.Addr().Next()
	var registered api.EndpointsResponse
	r.put(one, cellPath+"one/endpoints", api.EndpointsRequest{Generation: l.Generation, Sequence: 1, Endpoints: []api.EndpointRegistration{
		{Container: "web-0", Address: address, App: api.AppRef{Name: "web", Space: "prod", Org: "acme"}}}}, &registered)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(c *http.Client, cell, container, csr string) (int, string) {
		t.Helper()
		body, err := json.Marshal(api.CertificateRequest{Container: container, Request: csr})
		if err != nil {
			t.Fatal(err)
		}
		resp, text := r.do(c, http.MethodPost, cellPath+cell+"/certificates", body)
		return resp.StatusCode, text
	}
	if _, err := r.store.AddRoutes(t.Context(), []policy.Route{{Name: "web.apps.internal", App: registered.Apps["web-0"]}, {Name: "www.apps.internal", App: registered.Apps["web-0"]},
		{Name: "db.apps.internal", App: "db"}}, nil); err != nil {
		t.Fatal(err)
	}
	status, text := ask(one, "one", "web-0", request(t, key))
	if status != http.StatusOK {
		t.Fatalf("status %d: %s", status, text)
	}
	var got api.Certificate
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatal(err)
	}
	leaf := verify(t, r, got)
	apps, err := r.store.Apps(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	app := apps[0]
	if leaf.Subject.CommonName != "web-0" || strings.Join(leaf.DNSNames, " ") != "web-0 web.apps.internal www.apps.internal" || len(leaf.IPAddresses) != 2 || leaf.IPAddresses[0].String() != address.String() || leaf.IPAddresses[1].String() != policy.Twin(address).String() {
		t.Errorf("the certificate is of %q, %v, %v", leaf.Subject.CommonName, leaf.DNSNames, leaf.IPAddresses)
	}
	if want := "spiffe://tulle.internal/org/" + app.OrgGUID + "/space/" + app.SpaceGUID + "/app/" + string(app.GUID); len(leaf.URIs) != 1 || leaf.URIs[0].String() != want {
		t.Errorf("SPIFFE ID %v, want %s", leaf.URIs, want)
	}
	units := strings.Join(leaf.Subject.OrganizationalUnit, " ")
	for _, want := range []string{"app:" + string(app.GUID), "space:" + app.SpaceGUID, "organization:" + app.OrgGUID} {
		if !strings.Contains(units, want) {
			t.Errorf("units %q lack %q", units, want)
		}
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		t.Error("the certificate has another key")
	}
	if got.Seconds != int64(24*time.Hour/time.Second) {
		t.Errorf("it lives %d s, want a day", got.Seconds)
	}

	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(request(t, key)))
	block.Bytes[len(block.Bytes)-1] ^= 1
	forged := string(pem.EncodeToMemory(block))
	for name, c := range map[string]struct {
		client          *http.Client
		cell, container string
		csr             string
		status          int
	}{
		"nobody's container":         {one, "one", "web-1", request(t, key), http.StatusNotFound},
		"another cell's container":   {two, "two", "web-0", request(t, key), http.StatusNotFound},
		"under another cell's name":  {two, "one", "web-0", request(t, key), http.StatusForbidden},
		"no request":                 {one, "one", "web-0", "hello", http.StatusBadRequest},
		"without having the key":     {one, "one", "web-0", forged, http.StatusBadRequest},
		"a key that is too short":    {one, "one", "web-0", request(t, weak), http.StatusBadRequest},
		"a request that is too long": {one, "one", "web-0", strings.Repeat("x", 64<<10), http.StatusRequestEntityTooLarge},
		"an empty name of container": {one, "one", "", request(t, key), http.StatusNotFound},
	} {
		if status, text := ask(c.client, c.cell, c.container, c.csr); status != c.status {
			t.Errorf("%s: status %d, want %d: %s", name, status, c.status, text)
		}
	}
	resp, trust := r.do(two, http.MethodGet, api.PathTrust, nil)
	if want, _ := json.Marshal(api.Trust{Trust: string(r.roots.Instances.CertPEM())}); resp.StatusCode != http.StatusOK || trust != string(want) {
		t.Errorf("trust: status %d: %s", resp.StatusCode, trust)
	}
}

// verify checks a certificate as a container would.
func verify(t *testing.T, r *cellsRig, c api.Certificate) *x509.Certificate {
	t.Helper()
	var chain []*x509.Certificate
	for rest := []byte(c.Certificate); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, cert)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(c.Trust)) || len(chain) < 2 {
		t.Fatalf("a chain of %d, and trust %q", len(chain), c.Trust)
	}
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	return chain[0]
}
