package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestTakeOverBackUpAndRestore is the life of a store: policies and tags come
// from a Cloud Foundry policy server, a running server is backed up, and another
// is filled from that, each tag as it was from the beginning.
func TestTakeOverBackUpAndRestore(t *testing.T) {
	dir := initialised(t)
	files := t.TempDir()
	policies := write(t, filepath.Join(files, "policies.json"), `{"total_policies":1,"policies":[{"source":{"id":"web"},"destination":{"id":"db","protocol":"tcp","ports":{"start":80,"end":90}}}]}`)
	tags := write(t, filepath.Join(files, "tags.json"), `{"tags":[{"id":"db","tag":"0003","type":"app"},{"id":"web","tag":"0011","type":"app"}]}`)
	if got := must(t, "import", "--dir", dir, "--policies", policies, "--tags", tags); got != "1 policies, 0 cells and peers\n" {
		t.Errorf("import said %q", got)
	}
	s := serving(t, "--dir", dir)
	token := strings.TrimSpace(read(t, filepath.Join(dir, adminToken)))
	const wantTags = `200 OK {"tags":[{"id":"db","tag":"0003","type":"app"},{"id":"web","tag":"0011","type":"app"}]}`
	if got := s.get(t, "/networking/v1/external/tags", token); got != wantTags {
		t.Errorf("tags: %s", got)
	}
	must(t, "add-peer", "silk-1", "--dir", dir, "--underlay", "192.0.2.9", "--subnet", "10.255.9.0/24")

	// Of the running server, to a file that is nobody else's to read, and never
	// over another one.
	backup := filepath.Join(files, "backup.json")
	if got := must(t, "export", "--dir", dir, "--out", backup); got != "revision 2, 1 policies: "+backup+"\n" {
		t.Errorf("export said %q", got)
	}
	if info, err := os.Stat(backup); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the backup: %v, %v", info, err)
	}
	text := read(t, backup)
	if status, _, stderr := call(t, "export", "--dir", dir, "--out", backup); status != 1 || !strings.Contains(stderr, "file exists") || read(t, backup) != text {
		t.Errorf("a second export to the same file: %d %s", status, stderr)
	}
	if status, _, stderr := call(t, "import", "--dir", dir, backup); status != 1 || !strings.Contains(stderr, "the store is not empty") {
		t.Errorf("into the server that it came from: %d %s", status, stderr)
	}
	epoch := s.Epoch
	s.stop()
	// Without a server the command reads the database itself.
	if still := must(t, "export", "--dir", dir); strings.Count(still, "\n") != strings.Count(text, "\n") || !strings.Contains(still, string(epoch)) {
		t.Errorf("of a server that does not run:\n%s", still)
	}

	other := initialised(t)
	must(t, "import", "--dir", other, backup)
	s = serving(t, "--dir", other)
	token = strings.TrimSpace(read(t, filepath.Join(other, adminToken)))
	if s.Epoch == epoch || s.Revision != 3 {
		t.Errorf("epoch %s after %s, revision %d", s.Epoch, epoch, s.Revision)
	}
	if got := s.get(t, "/networking/v1/external/tags", token); got != wantTags {
		t.Errorf("tags of the restored: %s", got)
	}
	if got := s.get(t, "/v1/cells", token); !strings.Contains(got, `"name":"silk-1"`) {
		t.Errorf("cells of the restored: %s", got)
	}
	if got := s.get(t, "/v1/audit?limit=1", token); !strings.Contains(got, `"from":"command","action":"store.import"`) {
		t.Errorf("the record of the restored: %s", got)
	}
}

func TestImportRefuses(t *testing.T) {
	dir := initialised(t)
	files := t.TempDir()
	good := write(t, filepath.Join(files, "policies.json"), `{"total_policies":0,"policies":[]}`)
	other := write(t, filepath.Join(files, "other.json"), `{"error": "no"}`)
	two := write(t, filepath.Join(files, "two.json"), `{"tags":[]} {"tags":[]}`)
	for _, c := range []struct {
		args   []string
		status int
		want   string
	}{
		{nil, 2, "name one backup, or --dump, or both --policies and --tags"},
		{[]string{"a", "b"}, 2, "name one backup"},
		{[]string{"a", "--policies", "b", "--tags", "c"}, 2, "name one backup"},
		{[]string{"--policies", good}, 2, "name one backup"},
		{[]string{filepath.Join(files, "none")}, 1, "no such file"},
		{[]string{other}, 1, `unknown field "error"`},
		{[]string{"--policies", good, "--tags", other}, 1, other + `: json: unknown field "error"`},
		{[]string{"--policies", good, "--tags", good}, 1, `unknown field`},
		{[]string{"--policies", good, "--tags", two}, 1, "something follows the answer"},
	} {
		status, _, stderr := call(t, append([]string{"import", "--dir", dir}, c.args...)...)
		if status != c.status || !strings.Contains(stderr, c.want) {
			t.Errorf("import %v: %d %s, want %d %s", c.args, status, stderr, c.status, c.want)
		}
	}
}
