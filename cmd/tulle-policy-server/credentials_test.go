package main

import (
	"path/filepath"
	"strings"
	"testing"

	"tulle/policy/ca"
	"tulle/policy/client"
)

// TestCellsLife is what an operator does with a cell's credential: a token, the
// join, a revocation and its list, and all of it in the audit record.
func TestCellsLife(t *testing.T) {
	dir := initialised(t)
	token := strings.TrimSpace(read(t, filepath.Join(dir, adminToken)))
	// With no server running, the commands write the database.
	early := strings.TrimSpace(must(t, "join-token", "early", "--dir", dir, "--spaces", "*", "--valid", "1h"))
	s := serving(t, "serve", "--dir", dir)
	late := strings.TrimSpace(must(t, "join-token", "late", "--dir", dir, "--spaces", "acme/prod,acme/test", "--lifetime", "2h"))
	for name, text := range map[string]string{"early": early, "late": late} {
		out := filepath.Join(t.TempDir(), name)
		joined, err := client.Join(t.Context(), "https://"+s.Internal, text, out)
		if err != nil || joined != name {
			t.Fatalf("joined as %q, %v; want %s", joined, err, name)
		}
		_, peer, err := ca.CellTLS(out)
		if err != nil || peer.HostsAny() != (name == "early") || !peer.MayHost("acme", "prod", "") {
			t.Errorf("%s: the credential is of %+v, %v", name, peer, err)
		}
	}
	if out := must(t, "revoke-cell", "late", "--dir", dir); !strings.Contains(out, "cell late: credentials issued until ") {
		t.Error(out)
	}
	if out := must(t, "revocations", "--dir", dir); strings.Count(out, "\n") != 2 || !strings.Contains(out, "\nlate ") {
		t.Error(out)
	}
	record := s.get(t, "/v1/audit", token)
	for _, want := range []string{`"action":"cell.invite","subject":"late"`, `"action":"cell.join","subject":"early"`, `"action":"cell.revoke","subject":"late"`, `"who":"join token","from":"127.0.0.1"`} {
		if !strings.Contains(record, want) {
			t.Errorf("the audit record has no %s:\n%s", want, record)
		}
	}
	if status, text := s.stop(); status != 0 {
		t.Errorf("stopped with %d: %s", status, text)
	}
	must(t, "revoke-cell", "early", "--dir", dir)
	// A misspelt name is no success in silence: the cell that was meant goes on.
	if status, stdout, stderr := call(t, "revoke-cell", "erly", "--dir", dir); status != 0 || stdout == "" || !strings.Contains(stderr, "no cell erly has had a lease here") {
		t.Errorf("status %d, %q, %q", status, stdout, stderr)
	}
	if out := must(t, "revocations", "--dir", dir); strings.Count(out, "\n") != 4 {
		t.Error(out)
	}
}
