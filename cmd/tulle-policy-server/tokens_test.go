package main

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTokensOfALiveServer makes, limits, lists and removes tokens while the
// server runs.
func TestTokensOfALiveServer(t *testing.T) {
	dir := initialised(t)
	s := serving(t, "serve", "--dir", dir)
	add := func(args ...string) string {
		t.Helper()
		return strings.TrimSpace(must(t, append([]string{"add-token", "--dir", dir}, args...)...))
	}
	ops, ci, dev := add("ops"), add("ci", "--write"), add("dev", "--write", "--spaces", "acme/prod")
	post := func(token, path, body string) int {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+s.External+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "bearer "+token)
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		return answer.StatusCode
	}
	for _, c := range []struct {
		who, token, body string
		want             int
	}{
		{"ops", ops, `{"name":"web","org":"acme","space":"test"}`, 200},
		{"ci", ci, `{"name":"db","org":"acme","space":"test"}`, 200},
		{"dev, elsewhere", dev, `{"name":"web","org":"acme","space":"test"}`, 403},
		{"dev, at home", dev, `{"name":"web","org":"acme","space":"prod"}`, 200},
	} {
		if got := post(c.token, "/v1/apps", c.body); got != c.want {
			t.Errorf("%s: %d, want %d", c.who, got, c.want)
		}
	}
	want := "name   scopes         spaces\nadmin  network.admin  all\nops    network.admin  all\nci     network.write  all\ndev    network.write  acme/prod\n"
	if got := must(t, "tokens", "--dir", dir); got != want {
		t.Errorf("tokens:\n%s\nwant:\n%s", got, want)
	}
	must(t, "remove-token", "ci", "--dir", dir)
	if got := post(ci, "/v1/apps", `{"name":"x"}`); got != 401 {
		t.Errorf("a removed token: %d, want 401", got)
	}
	if got := post(ops, "/v1/apps", `{"name":"x"}`); got != 200 {
		t.Errorf("the others: %d, want 200", got)
	}
	info, err := os.Stat(filepath.Join(dir, "tokens.yaml"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the tokens file: %v, %v", info.Mode(), err)
	}
	if text := read(t, filepath.Join(dir, "tokens.yaml")); strings.Contains(text, ops) || strings.Contains(text, dev) {
		t.Error("the tokens file holds a token")
	}
	for _, c := range []struct {
		args   string
		status int
		text   string
	}{
		{"add-token", 2, "one token name"},
		{"add-token ops", 1, "name stands twice"},
		{"add-token x --spaces acme/prod", 2, "--write"},
		{"add-token x --write --spaces acme/", 1, "neither ORG/SPACE"},
		{"remove-token nobody", 1, `no token "nobody"`},
	} {
		status, stdout, stderr := call(t, append(strings.Fields(c.args), "--dir", dir)...)
		if status != c.status || !strings.Contains(stderr, c.text) || stdout != "" {
			t.Errorf("%s: %d %q %q; want %d and %q", c.args, status, stdout, stderr, c.status, c.text)
		}
	}
	if got := must(t, "tokens", "--dir", dir); strings.Count(got, "\n") != 4 {
		t.Errorf("what was refused changed the file:\n%s", got)
	}
}
