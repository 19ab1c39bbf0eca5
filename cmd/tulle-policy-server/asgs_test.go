package main

import (
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tulle/policy/auth/uaa/uaatest"
	"tulle/policy/ca"
	"tulle/policy/cc/cctest"
)

func certPEM(s *httptest.Server) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
}

// TestServeFollowsTheCloudControllersGroups: a foundation's groups reach the
// agents, by the server's own token and its certificate for the internal API.
func TestServeFollowsTheCloudControllersGroups(t *testing.T) {
	u := uaatest.New(t)
	asked := make(chan struct{}, 1000)
	api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v3/security_groups" || !strings.HasPrefix(r.Header.Get("Authorization"), "bearer ") {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		io.WriteString(w, `{"pagination":{"next":null},"resources":[{"guid":"g1","name":"public","globally_enabled":{"running":true},
			"rules":[{"protocol":"all","destination":"0.0.0.0-9.255.255.255"}]}]}`)
	}))
	t.Cleanup(api.Close)
	roots, err := ca.CreateLegacy(t.TempDir()) // any root of clients
	if err != nil {
		t.Fatal(err)
	}
	cred, err := roots.IssueLegacy("policy-server", 0)
	if err != nil {
		t.Fatal(err)
	}
	internal := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked <- struct{}{}
		io.WriteString(w, `{"last_update":"2026-01-02T03:04:05Z"}`)
	}))
	internal.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots.Pool()}
	internal.StartTLS()
	t.Cleanup(internal.Close)

	c := cctest.New(t, u)
	dir := founded(t, u, c, "cc_internal_url: "+internal.URL, "cc_internal_ca_cert: internal.pem", "cc_internal_client_cert: client.pem",
		"cc_internal_client_key: client-key.pem", "asg_poll_interval_seconds: 1")
	for name, text := range map[string]string{
		"cc.pem": certPEM(api), "internal.pem": certPEM(internal), "client.pem": string(cred.CertPEM), "client-key.pem": string(cred.KeyPEM),
		configFile: strings.Replace(read(t, filepath.Join(dir, configFile)), "cc_url: "+c.URL, "cc_url: "+api.URL, 1),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := serving(t, "serve", "--dir", dir)
	for range 3 { // before the listing, after it, and at the next look
		<-asked
	}
	const want = `200 OK {"security_groups":[{"guid":"g1","name":"public","rules":[{"protocol":"all","destination":"0.0.0.0-9.255.255.255",` +
		`"ports":"","type":0,"code":0,"description":"","log":false}],"staging_default":false,"running_default":true,"staging_space_guids":[],"running_space_guids":[]}]}`
	if got := s.get(t, "/v1/security-groups", u.User("root", "guid-root", "network.admin")); got != want {
		t.Errorf("groups: %s\nwant %s", got, want)
	}
	if status, text := s.stop(); status != 0 {
		t.Errorf("stopped with %d: %s", status, text)
	}
}

func TestASGConfigurationNamesWhatIsWrong(t *testing.T) {
	path := filepath.Join(t.TempDir(), configFile)
	const uaa = "uaa_url: https://uaa\nuaa_client_secret_file: s\ncc_url: https://cc\n"
	const pair = "cc_internal_client_cert: a\ncc_internal_client_key: b\n"
	for _, c := range []struct{ text, want string }{
		{"asg_poll_interval_seconds: 0", "asg_poll_interval_seconds: 0: must be from 1"},
		{"retry_deadline_seconds: -1", "retry_deadline_seconds: -1: must be from 1"},
		{"cc_internal_ca_cert: x", "cc_internal_ca_cert: \"x\": needs cc_internal_url"},
		{"cc_internal_url: https://cc:9023\n" + pair, "cc_internal_url: \"https://cc:9023\": needs uaa_url"},
		{uaa + pair + "cc_internal_url: http://cc.example.com", "must begin with https://"},
		{uaa + "cc_internal_url: https://cc:9023\ncc_internal_client_cert: a", "cc_internal_client_key"},
	} {
		if err := os.WriteFile(path, []byte(c.text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if status, _, stderr := call(t, "serve", "--config", path); status != 1 || !strings.Contains(stderr, c.want) {
			t.Errorf("%q: status %d: %s\nwant %q", c.text, status, stderr, c.want)
		}
	}
	u := uaatest.New(t)
	dir := founded(t, u, cctest.New(t, u), fmt.Sprintf("cc_internal_url: https://127.0.0.1:9023\n%s", pair))
	if status, _, stderr := call(t, "serve", "--dir", dir); status != 1 || !strings.Contains(stderr, "cc_internal_client_cert") {
		t.Errorf("without the certificate: status %d: %s", status, stderr)
	}
}
