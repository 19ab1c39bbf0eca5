package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tulle/cmd/internal/promtest"
	"tulle/policy/ca"
)

// command runs a command to its end.
func call(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	status = run(t.Context(), args, &out, &errs)
	return status, out.String(), errs.String()
}

func must(t *testing.T, args ...string) string {
	t.Helper()
	status, stdout, stderr := call(t, args...)
	if status != 0 {
		t.Fatalf("%s: status %d: %s", strings.Join(args, " "), status, stderr)
	}
	return stdout
}

// initialised makes a directory of init's, with free ports.
func initialised(t *testing.T, more ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "server")
	must(t, append([]string{"init", "--dir", dir, "--external", "127.0.0.1:0", "--internal", "127.0.0.1:0", "--metrics", "127.0.0.1:0"}, more...)...)
	return dir
}

// running is a server under test.
type running struct {
	ready
	stop func() (status int, stderr string)
}

// serving starts a server and waits for its ready line.
func serving(t *testing.T, args ...string) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	in, out := io.Pipe()
	var stderr bytes.Buffer
	done := make(chan int, 1)
	go func() {
		status := run(ctx, args, out, &stderr)
		out.Close()
		done <- status
	}()
	r := &running{}
	err := json.NewDecoder(in).Decode(&r.ready)
	stopped := false
	r.stop = func() (int, string) {
		stopped = true
		cancel()
		return <-done, stderr.String()
	}
	t.Cleanup(func() {
		if !stopped {
			r.stop()
		}
	})
	if err != nil {
		status, text := r.stop()
		t.Fatalf("no ready line: %v; status %d: %s", err, status, text)
	}
	return r
}

func (r *running) get(t *testing.T, path, token string) string {
	t.Helper()
	return fetch(t, "http://"+r.External+path, token)
}

func fetch(t *testing.T, url, token string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "bearer "+token)
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.Status + " " + string(body)
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestInitThenServe is what a newcomer does, and what an operator does after.
func TestInitThenServe(t *testing.T) {
	dir := initialised(t, "--network", "10.77.0.0/16")
	token := strings.TrimSpace(read(t, filepath.Join(dir, adminToken)))
	s := serving(t, "serve", "--config", filepath.Join(dir, configFile))
	if !s.Ready || s.Epoch == "" || s.Internal == "" || strings.HasSuffix(s.External, ":0") {
		t.Fatalf("ready line %+v", s.ready)
	}
	if got := s.get(t, "/networking/v1/external/whoami", token); got != `200 OK {"subject":"admin"}` {
		t.Errorf("the admin token: %s", got)
	}
	must(t, "add-peer", "silk-1", "--dir", dir, "--underlay", "192.0.2.9", "--subnet", "10.77.9.0/24")
	if got := s.get(t, "/v1/cells", token); !strings.Contains(got, `"name":"silk-1","kind":"silk","mode":"vxlan","underlay":"192.0.2.9","port":4789,"subnet":"10.77.9.0/24"`) {
		t.Errorf("cells: %s", got)
	}
	numbers := promtest.Page(t, s.Metrics)
	promtest.Needs(t, numbers, "tulle_policies", "tulle_policy_revision", "tulle_policy_endpoints", "tulle_lease_subnets", "tulle_policy_watchers",
		"tulle_policy_watch_lag_revisions", "tulle_policy_server_request_duration_seconds", "tulle_policy_store_operation_duration_seconds")
	for _, line := range []string{`tulle_lease_subnets{state="used"} 1`, `tulle_policy_revision 1`,
		`tulle_policy_server_requests_total{api="admin",code="204",handler="add_peer"} 1`,
		`tulle_policy_server_requests_total{api="external",code="200",handler="whoami"} 1`} {
		if !strings.Contains(numbers, line+"\n") {
			t.Errorf("not in the metrics: %s", line)
		}
	}
	status, _, stderr := call(t, "add-peer", "silk-2", "--dir", dir, "--underlay", "192.0.2.10", "--subnet", "10.77.9.128/25")
	if status != 1 || !strings.Contains(stderr, "overlaps with silk-1's 10.77.9.0/24") {
		t.Errorf("a subnet that is taken: %d %s", status, stderr)
	}
	status, _, stderr = call(t, "serve", "--dir", dir)
	if status != 1 || !strings.Contains(stderr, "in use by another server") {
		t.Errorf("a second server: %d %s", status, stderr)
	}
	if status, text := s.stop(); status != 0 {
		t.Errorf("stopped with %d: %s", status, text)
	}
	// Without a server the command writes the file itself.
	must(t, "remove-peer", "silk-1", "--dir", dir)
	again := serving(t, "--dir", dir) // serve is the default
	if got := again.get(t, "/v1/cells", token); got != `200 OK {"cells":[]}` {
		t.Errorf("cells after the removal: %s", got)
	}
	if again.Epoch != s.Epoch || again.Revision != 2 {
		t.Errorf("started again: %+v", again.ready)
	}
	if status, text := again.stop(); status != 0 {
		t.Errorf("stopped with %d: %s", status, text)
	}
	for _, left := range []string{"policy.db-wal", "policy.db-shm", "policy.db.sock"} {
		if _, err := os.Stat(filepath.Join(dir, left)); err == nil {
			t.Errorf("%s is left after a clean stop", left)
		}
	}
}

func TestInitKeepsSecrets(t *testing.T) {
	dir := initialised(t)
	text := strings.TrimSpace(read(t, filepath.Join(dir, adminToken)))
	if tokens := read(t, filepath.Join(dir, "tokens.yaml")); text == "" || strings.Contains(tokens, text) {
		t.Errorf("the tokens file tells the token: %s", tokens)
	}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		name := e.Name()
		if secret := name == adminToken || name == "tokens.yaml" || strings.Contains(name, "key"); secret && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %s", path, info.Mode())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestInitOverwritesNothing(t *testing.T) {
	dir := initialised(t)
	before := snapshot(t, dir)
	status, _, stderr := call(t, "init", "--dir", dir)
	if status != 1 || !strings.Contains(stderr, "exists already") {
		t.Errorf("a second init: %d %s", status, stderr)
	}
	if snapshot(t, dir) != before {
		t.Error("a second init changed something")
	}
	half := t.TempDir()
	if err := os.WriteFile(filepath.Join(half, configFile), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	before = snapshot(t, half)
	if status, _, _ := call(t, "init", "--dir", half); status != 1 || snapshot(t, half) != before {
		t.Errorf("init beside another configuration: %d, directory now\n%s", status, snapshot(t, half))
	}
}

func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			b.WriteString(path + "\n" + read(t, path) + "\n")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestIssueCell(t *testing.T) {
	dir := initialised(t)
	out := filepath.Join(t.TempDir(), "credentials")
	must(t, "issue-cell", "cell-1", "--dir", dir, "--spaces", "acme/prod,acme/test", "--out", out)
	_, peer, err := ca.CellTLS(out)
	if err != nil {
		t.Fatal(err)
	}
	if peer.Name != "cell-1" || peer.HostsAny() || !peer.MayHost("acme", "prod", "") || peer.MayHost("acme", "other", "") {
		t.Errorf("the credential is of %+v", peer)
	}
	if status, _, stderr := call(t, "issue-cell", "cell-1", "--dir", dir, "--spaces", "*", "--out", out); status != 1 {
		t.Errorf("over the first one: %d %s", status, stderr)
	}
}

func TestCommandLinesThatMakeNoSense(t *testing.T) {
	dir := initialised(t)
	for _, c := range []struct {
		args   string
		status int
		text   string
	}{
		{"fly", 2, `"fly"`},
		{"serve now", 2, `"now"`},
		{"--colour", 2, "--colour"},
		{"init --dir DIR/x --network banana", 2, "--network"},
		{"init --dir DIR/x --network 10.9.0.1/16", 2, "host bits"},
		{"init --dir DIR/x --lease-bits 16", 2, "lease_bits"},
		{"init --dir DIR/x --network 10.9.0.0/30 --lease-bits 31", 2, "must be a /29 or larger"},
		{"issue-cell --dir DIR --spaces * --out DIR/c", 2, "one cell name"},
		{"issue-cell a/b --dir DIR --spaces * --out DIR/c", 2, "a/b"},
		{"issue-cell c --dir DIR --out DIR/c", 2, "--spaces"},
		{"issue-cell c --dir DIR --spaces * --out DIR/c --lifetime -1h", 2, "--lifetime"},
		{"issue-legacy c --dir DIR --out DIR/c --lifetime -1h", 2, "--lifetime"},
		{"join-token --dir DIR --spaces *", 2, "one cell name"},
		{"join-token a/b --dir DIR --spaces *", 2, "a/b"},
		{"join-token c --dir DIR", 2, "--spaces"},
		{"join-token c --dir DIR --spaces /", 2, "--spaces"},
		{"join-token c --dir DIR --spaces * --valid 9000h", 2, "--valid"},
		{"join-token c --dir DIR --spaces * --lifetime 0s", 2, "--lifetime"},
		{"revoke-cell --dir DIR", 2, "one cell name"},
		{"revoke-cell a/b --dir DIR", 2, "a/b"},
		{"revocations now --dir DIR", 2, `"now"`},
		{"add-peer s --dir DIR --underlay 192.0.2.1", 2, "--underlay and --subnet are needed"},
		{"add-peer s --dir DIR --underlay x --subnet 10.255.1.0/24", 2, "--underlay"},
		{"add-peer s --dir DIR --underlay 192.0.2.1 --subnet x", 2, "--subnet"},
		{"add-peer s --dir DIR --underlay 192.0.2.1 --subnet 10.8.1.0/24", 1, "overlay network 10.255.0.0/16"},
		{"remove-peer s --dir DIR", 1, `no peer "s"`},
		{"serve --dir DIR/nowhere", 1, "nowhere/config.yaml"},
	} {
		status, stdout, stderr := call(t, strings.Fields(strings.ReplaceAll(c.args, "DIR", dir))...)
		if status != c.status || !strings.Contains(stderr, c.text) || stdout != "" {
			t.Errorf("%s: status %d, stdout %q, stderr %q; want %d and %q", c.args, status, stdout, stderr, c.status, c.text)
		}
	}
}

func TestConfigurationNamesWhatIsWrong(t *testing.T) {
	path := filepath.Join(t.TempDir(), configFile)
	text := "external: 4002\nnetwork: 10.9.0.0/16\nlease_bits: 31\nlease_lifetime: 3s\ncolour: blue\nmax_policies: 0\nexternal_tls: {cert: a.pem}\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	status, _, stderr := call(t, "serve", "--config", path)
	if status != 1 {
		t.Errorf("status %d", status)
	}
	for _, want := range []string{"line 5: colour", path} {
		if !strings.Contains(stderr, want) {
			t.Errorf("%q is not in: %s", want, stderr)
		}
	}
	text = strings.Replace(text, "colour: blue\n", "", 1)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, stderr = call(t, "serve", "--config", path)
	for _, want := range []string{"line 1: external", "line 3: lease_bits", "line 4: lease_lifetime", "line 5: max_policies", "line 6: external_tls"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("%q is not in: %s", want, stderr)
		}
	}
}

func TestVersion(t *testing.T) {
	if out := must(t, "version"); !strings.HasPrefix(out, "tulle-policy-server ") || !strings.Contains(out, " go1.") {
		t.Errorf("version %q", out)
	}
}
