package main

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// legacyClient reads the credential as the original's clients do: three files.
func legacyClient(t *testing.T, dir string) *http.Client {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "client.pem"), filepath.Join(dir, "client-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(read(t, filepath.Join(dir, "server-ca.pem")))) {
		t.Fatal("server-ca.pem holds no certificate")
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func ask(t *testing.T, c *http.Client, method, url, body string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	answer, err := c.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.Status + " " + string(text)
}

func TestLegacyFromInitOn(t *testing.T) {
	dir := initialised(t, "--legacy=127.0.0.1:0")
	s := serving(t, "--dir", dir)
	out := filepath.Join(t.TempDir(), "agent")
	if said := must(t, "issue-legacy", "diego-cell-1", "--dir", dir, "--out", out); strings.Contains(said, "once its configuration") {
		t.Errorf("legacy is on, yet: %s", said)
	}
	info, err := os.Stat(filepath.Join(out, "client-key.pem"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("client-key.pem: %v, %v", info, err)
	}
	c := legacyClient(t, out)
	if got := ask(t, c, "PUT", "https://"+s.Legacy+"/leases/acquire", `{"underlay_ip":"127.0.0.1"}`); !strings.HasPrefix(got, `200 OK {"underlay_ip":"127.0.0.1","overlay_subnet":"10.255.`) {
		t.Errorf("acquire: %s", got)
	}
	if got := ask(t, c, "GET", "https://"+s.Internal+"/networking/v1/internal/policies", ""); got != `200 OK {"total_policies":0,"policies":[]}` {
		t.Errorf("policies: %s", got)
	}
	numbers := fetch(t, "http://"+s.Metrics+"/metrics", "")
	if line := `tulle_policy_server_requests_total{api="legacy",code="200",handler="acquire"} 1`; !strings.Contains(numbers, line+"\n") {
		t.Errorf("not in the metrics: %s", line)
	}
	if status, _, stderr := call(t, "issue-legacy", "diego-cell-1", "--dir", dir, "--out", out); status != 1 {
		t.Errorf("over the first one: %d %s", status, stderr)
	}
	if status, _, _ := call(t, "issue-legacy", "a/b", "--dir", dir, "--out", out); status != 2 {
		t.Errorf("a name with a slash: status %d", status)
	}
}

func TestLegacySwitchedOnLater(t *testing.T) {
	dir := initialised(t)
	path := filepath.Join(dir, configFile)
	text := read(t, path)
	if !strings.Contains(text, "legacy: \"\" #") {
		t.Fatalf("the configuration does not offer legacy:\n%s", text)
	}
	off := serving(t, "--dir", dir)
	if off.Legacy != "" {
		t.Errorf("off, but served at %s", off.Legacy)
	}
	off.stop()
	if err := os.WriteFile(path, []byte(strings.Replace(text, `legacy: ""`, "legacy: 127.0.0.1:0", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if status, _, stderr := call(t, "serve", "--dir", dir); status != 1 || !strings.Contains(stderr, "no legacy root") || !strings.Contains(stderr, "issue-legacy makes one") {
		t.Errorf("without a root: %d %s", status, stderr)
	}
	out := filepath.Join(t.TempDir(), "agent")
	must(t, "issue-legacy", "agent", "--dir", dir, "--out", out)
	on := serving(t, "--dir", dir)
	if got := ask(t, legacyClient(t, out), "GET", "https://"+on.Legacy+"/leases", ""); got != `200 OK {"leases":[]}` {
		t.Errorf("leases: %s", got)
	}
}
