package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tulle/policy/auth/uaa/uaatest"
	"tulle/policy/cc/cctest"
)

// founded is a directory whose configuration names a UAA and a Cloud Controller,
// with more lines behind.
func founded(t *testing.T, u *uaatest.UAA, c *cctest.CC, more ...string) string {
	t.Helper()
	dir := initialised(t)
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("uaa.pem", string(u.Root()))
	write("cc.pem", string(c.Root()))
	write("secret", uaatest.ClientSecret+"\n")
	host, port, _ := strings.Cut(strings.TrimPrefix(u.URL, "https://"), ":")
	lines := append([]string{
		"uaa_url: https://" + host, "uaa_port: " + port, "uaa_ca: uaa.pem", "uaa_client_secret_file: secret",
		"cc_url: " + c.URL, "cc_ca_cert: cc.pem"}, more...)
	write(configFile, read(t, filepath.Join(dir, configFile))+strings.Join(lines, "\n")+"\n")
	return dir
}

func TestServeInAFoundation(t *testing.T) {
	for name, keys := range map[string]bool{"asking the UAA": false, "by keys": true} {
		t.Run(name, func(t *testing.T) {
			u := uaatest.New(t)
			c := cctest.New(t, u)
			c.App("web", "web", "blue")
			c.Role("space_developer", "guid-alice", "blue")
			admin, alice := u.User("root", "guid-root", "network.admin"), u.User("alice", "guid-alice", "cloud_controller.read")
			var more []string
			if keys {
				more = []string{"uaa_verification: keys", "uaa_issuer: " + u.Issuer}
			}
			dir := founded(t, u, c, append(more, "enable_space_developer_self_service: true", "policy_cleanup_interval: 5")...)
			s := serving(t, "serve", "--dir", dir)
			if got := s.get(t, "/networking/v1/external/whoami", admin); got != `200 OK {"subject":"root"}` {
				t.Errorf("the UAA's admin: %s", got)
			}
			standalone := strings.TrimSpace(read(t, filepath.Join(dir, adminToken)))
			if got := s.get(t, "/networking/v1/external/whoami", standalone); !strings.HasPrefix(got, "401 ") {
				t.Errorf("the tokens file's admin: %s", got)
			}
			policy := func(to string) string {
				body := fmt.Sprintf(`{"policies":[{"source":{"id":"web"},"destination":{"id":"%s","protocol":"tcp","ports":{"start":1,"end":1}}}]}`, to)
				r, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+s.External+"/networking/v1/external/policies", strings.NewReader(body))
				if err != nil {
					t.Fatal(err)
				}
				r.Header.Set("Authorization", "bearer "+alice)
				answer, err := http.DefaultClient.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				defer answer.Body.Close()
				return answer.Status
			}
			if got := policy("web"); got != "200 OK" {
				t.Errorf("a space developer's policy: %s", got)
			}
			if got := policy("gone"); got != "403 Forbidden" {
				t.Errorf("a space developer's policy with an unknown app: %s", got)
			}
			// Of the tokens above only the standalone one says nothing by itself.
			if asked, want := len(u.Requests("/check_token")), map[bool]int{false: 4, true: 1}[keys]; asked != want {
				t.Errorf("the UAA was asked about %d tokens, want %d", asked, want)
			}
			if status, text := s.stop(); status != 0 {
				t.Errorf("stopped with %d: %s", status, text)
			}
		})
	}
}

// TestFoundationRoots: the UAA's certificate is checked by its own root and no
// other, unless nothing is to be checked.
func TestFoundationRoots(t *testing.T) {
	u := uaatest.New(t)
	c := cctest.New(t, u)
	admin := u.User("root", "guid-root", "network.admin")
	strange := initialised(t) // a root that signed none of it
	for name, want := range map[string]string{"": "401 ", "skip_ssl_validation: true": "200 "} {
		dir := founded(t, u, c, name)
		root := read(t, filepath.Join(strange, "pki", "server", "cert.pem"))
		if err := os.WriteFile(filepath.Join(dir, "uaa.pem"), []byte(root), 0o600); err != nil {
			t.Fatal(err)
		}
		s := serving(t, "serve", "--dir", dir)
		if got := s.get(t, "/networking/v1/external/whoami", admin); !strings.HasPrefix(got, want) {
			t.Errorf("%q: %s", name, got)
		}
		if _, text := s.stop(); strings.Contains(text, "skip_ssl_validation") != (want == "200 ") {
			t.Errorf("%q: the log says\n%s", name, text)
		}
	}
}

func TestFoundationConfigurationNamesWhatIsWrong(t *testing.T) {
	u := uaatest.New(t)
	c := cctest.New(t, u)
	path := filepath.Join(t.TempDir(), configFile)
	for _, c := range []struct{ text, want string }{
		{"cc_url: https://cc", "cc_url: \"https://cc\": needs uaa_url"},
		{"enable_space_developer_self_service: true", "needs uaa_url"},
		{"uaa_url: https://uaa\nuaa_client_secret_file: s", "cc_url: must be a URL"},
		{"uaa_url: https://uaa\ncc_url: https://cc", "uaa_client_secret_file: must name the file"},
		{"uaa_url: http://uaa.example.com", "uaa_url: \"http://uaa.example.com\": must begin with https://"},
		{"uaa_url: https://user:pw@uaa", "must be a URL"},
		{"uaa_url: https://uaa/oauth", "with nothing behind it"},
		{"uaa_url: uaa.example.com:8443", "must be"},
		{"uaa_url: https://uaa:8443\nuaa_port: 8443", "names a port already"},
		{"uaa_url: https://uaa\nuaa_client: \"\"", "uaa_client"},
		{"uaa_url: https://uaa\nuaa_timeout: 0s", "uaa_timeout"},
		{"uaa_url: https://uaa\ncc_timeout: -1s", "cc_timeout"},
		{"uaa_url: https://uaa\nuaa_verification: never", "must be check_token or keys"},
		{"uaa_url: https://uaa\nuaa_verification: keys", "uaa_issuer: is needed"},
		{"uaa_url: https://uaa\nuaa_verification: keys\nuaa_issuer: x\nuaa_audience: []", "uaa_audience: must list"},
		{"policy_cleanup_interval: 0", "policy_cleanup_interval"},
		{"policy_cleanup_interval: 99999999999", "policy_cleanup_interval"},
	} {
		if err := os.WriteFile(path, []byte(c.text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if status, _, stderr := call(t, "serve", "--config", path); status != 1 || !strings.Contains(stderr, c.want) {
			t.Errorf("%q: status %d: %s\nwant %q", c.text, status, stderr, c.want)
		}
	}
	for missing, want := range map[string]string{"secret": "uaa_client_secret_file", "uaa.pem": "uaa_ca", "cc.pem": "cc_ca_cert"} {
		dir := founded(t, u, c)
		if err := os.Remove(filepath.Join(dir, missing)); err != nil {
			t.Fatal(err)
		}
		if status, _, stderr := call(t, "serve", "--dir", dir); status != 1 || !strings.Contains(stderr, want) {
			t.Errorf("without %s: status %d: %s", missing, status, stderr)
		}
	}
	dir := founded(t, u, c)
	if err := os.WriteFile(filepath.Join(dir, "cc.pem"), []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	if status, _, stderr := call(t, "serve", "--dir", dir); status != 1 || !strings.Contains(stderr, "holds no certificate") {
		t.Errorf("a root that is none: status %d: %s", status, stderr)
	}
}

// TestTheManualsConfiguration: what docs/operations/cloud-foundry.md shows is
// taken as it stands, and its defaults are the defaults.
func TestTheManualsConfiguration(t *testing.T) {
	_, rest, ok := strings.Cut(read(t, filepath.Join("..", "..", "docs", "operations", "cloud-foundry.md")), "```yaml\n")
	text, _, closed := strings.Cut(rest, "```")
	if !ok || !closed {
		t.Fatal("the page shows no configuration")
	}
	path := filepath.Join(t.TempDir(), configFile)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := loadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	if c.uaaAddress() != "https://uaa.service.cf.internal:8443" || c.UAASecretFile != filepath.Join(filepath.Dir(path), "uaa-client.secret") ||
		c.UAAVerification != verifyByKeys || !c.SelfService || len(c.audience()) != 1 {
		t.Errorf("read as %+v", c)
	}
	d := defaults()
	if c.UAAClient != d.UAAClient || c.UAATimeout != d.UAATimeout || c.CCTimeout != d.CCTimeout ||
		c.PolicyCleanupInterval != d.PolicyCleanupInterval || c.MaxPolicies != d.MaxPolicies || d.UAAVerification != verifyByUAA {
		t.Errorf("the defaults are %+v", d)
	}
}
