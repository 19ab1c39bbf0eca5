package ca

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func create(t *testing.T) (*Roots, string) {
	t.Helper()
	dir := t.TempDir()
	roots, err := Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	return roots, dir
}

func issueCell(t *testing.T, a *Authority, name string, lifetime time.Duration, spaces ...Space) *Credential {
	t.Helper()
	c, err := a.IssueCell(name, spaces, lifetime)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCreateWritesThreeRootsOnceAndOpenReadsThem(t *testing.T) {
	roots, dir := create(t)
	for _, role := range []Role{RoleCell, RoleInstance, RoleServer} {
		info, err := os.Stat(filepath.Join(dir, string(role), "key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != 0o600 {
			t.Errorf("%s/key.pem has mode %o, want 600", role, got)
		}
	}
	if _, err := Create(dir); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second Create: %v, want %v", err, fs.ErrExist)
	}
	opened, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !opened.Cells.cert.Equal(roots.Cells.cert) || !opened.Server.cert.Equal(roots.Server.cert) || !opened.Instances.cert.Equal(roots.Instances.cert) {
		t.Error("Open read other certificates than Create made")
	}
	if opened.Cells.cert.Equal(opened.Server.cert) || opened.Cells.cert.Equal(opened.Instances.cert) {
		t.Error("two roles share a root")
	}
}

func TestFailedWriteLeavesNothingBehind(t *testing.T) {
	dir := t.TempDir()
	// cert.pem sorts before key.pem, so it is written before the conflict is met.
	if err := os.WriteFile(filepath.Join(dir, "key.pem"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := createRoot(dir, RoleCell, time.Now()); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("createRoot over a key: %v, want %v", err, fs.ErrExist)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 {
		t.Errorf("%d files are left, want only the one that was there", len(entries))
	}
	if got, _ := os.ReadFile(filepath.Join(dir, "key.pem")); string(got) != "mine" {
		t.Errorf("the file that was there now holds %q", got)
	}
}

func TestOpenRefusesAKeyOfAnotherRoot(t *testing.T) {
	_, dir := create(t)
	key, err := os.ReadFile(filepath.Join(dir, "server", "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "cells", "key.pem"), key, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "does not hold the key") {
		t.Errorf("Open with a foreign key: %v", err)
	}
}

func TestEachRootSignsItsOwnKindOnly(t *testing.T) {
	roots, _ := create(t)
	for _, a := range []*Authority{roots.Instances, roots.Server} {
		if _, err := a.IssueCell("c", nil, 0); !errors.Is(err, ErrRole) {
			t.Errorf("root %s issues a cell: %v", a.role, err)
		}
	}
	for _, a := range []*Authority{roots.Cells, roots.Server} {
		if _, err := a.IssueInstance("app", "i", 0); !errors.Is(err, ErrRole) {
			t.Errorf("root %s issues an instance: %v", a.role, err)
		}
	}
	for _, a := range []*Authority{roots.Cells, roots.Instances} {
		if _, err := a.IssueServer([]string{"h"}, 0); !errors.Is(err, ErrRole) {
			t.Errorf("root %s issues a server: %v", a.role, err)
		}
	}
}

func TestIdentityTravelsInTheCertificate(t *testing.T) {
	roots, _ := create(t)
	named := func(s string) Space {
		p, err := ParseSpace(s)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, spaces := range [][]Space{
		nil,
		{AnySpace},
		{named("acme/prod"), named("acme/dev"), named("11111111-aaaa-4bbb-8ccc-000000000001")},
		{{Org: "a/b c", Space: "ä?#%"}, {Org: "*", Space: "*"}},
	} {
		leaf, err := issueCell(t, roots.Cells, "cell-1", 0, spaces...).Certificate()
		if err != nil {
			t.Fatal(err)
		}
		got, err := Identify(leaf)
		if err != nil {
			t.Fatalf("spaces %v: %v", spaces, err)
		}
		if diff := cmp.Diff(Peer{Role: RoleCell, Name: "cell-1", Spaces: spaces, Issued: got.Issued}, got); diff != "" {
			t.Errorf("spaces %v (-want +got):\n%s", spaces, diff)
		}
	}

	inst, err := roots.Instances.IssueInstance("app-guid", "0", 0)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := inst.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Identify(leaf)
	if diff := cmp.Diff(Peer{Role: RoleInstance, Name: "app-guid/0", Issued: got.Issued}, got); diff != "" || err != nil {
		t.Errorf("instance: %v (-want +got):\n%s", err, diff)
	}
}

func TestIdentifyRefusesWhatItDoesNotUnderstand(t *testing.T) {
	tests := map[string][]string{
		"nothing":           nil,
		"foreign scheme":    {"spiffe://cells/cell-1"},
		"only a space":      {"tulle://spaces/*"},
		"two cells":         {"tulle://cells/a", "tulle://cells/b"},
		"cell and instance": {"tulle://cells/a", "tulle://instances/a/0"},
		"unknown role":      {"tulle://servers/a"},
		"deep cell name":    {"tulle://cells/a/b"},
		"empty cell name":   {"tulle://cells/"},
		"no path":           {"tulle://cells"},
		"deep space":        {"tulle://cells/a", "tulle://spaces/a/b/c"},
		"empty space":       {"tulle://cells/a", "tulle://spaces//b"},
	}
	for name, uris := range tests {
		cert := &x509.Certificate{}
		for _, u := range uris {
			cert.URIs = append(cert.URIs, mustURL(t, u))
		}
		if p, err := Identify(cert); err == nil {
			t.Errorf("%s: accepted as %+v", name, p)
		}
	}
}

func TestMayHost(t *testing.T) {
	tests := []struct {
		spaces           string
		org, space, guid string
		want             bool
	}{
		{"*", "acme", "prod", "", true},
		{"*", "", "", "", true},
		{"acme/prod", "acme", "prod", "g1", true},
		{"acme/prod", "acme", "dev", "g1", false},
		{"acme/prod", "other", "prod", "", false},
		{"acme/prod", "", "", "", false},
		{"g1", "acme", "prod", "g1", true},
		{"g1", "acme", "prod", "g2", false},
		{"g1", "acme", "prod", "", false},
		{"", "acme", "prod", "g1", false},
		{"acme/dev g1", "acme", "prod", "g1", true},
	}
	for _, tt := range tests {
		var p Peer
		for _, s := range strings.Fields(tt.spaces) {
			space, err := ParseSpace(s)
			if err != nil {
				t.Fatal(err)
			}
			if space.String() != s {
				t.Errorf("ParseSpace(%q).String() = %q", s, space)
			}
			p.Spaces = append(p.Spaces, space)
		}
		if got := p.MayHost(tt.org, tt.space, tt.guid); got != tt.want {
			t.Errorf("spaces %q, app of %s/%s (%s): %v, want %v", tt.spaces, tt.org, tt.space, tt.guid, got, tt.want)
		}
	}
	for _, bad := range []string{"", "/", "acme/", "/prod", "a/b/c"} {
		if s, err := ParseSpace(bad); err == nil {
			t.Errorf("ParseSpace(%q) = %v", bad, s)
		}
	}
}

func TestCellNames(t *testing.T) {
	for _, ok := range []string{"cell-1", "a", "A_b.c", "10.0.0.1"} {
		if err := CheckCellName(ok); err != nil {
			t.Errorf("%q: %v", ok, err)
		}
	}
	for _, bad := range []string{"", ".", "..", "a/b", "a b", "zelle-ä", "a\n", strings.Repeat("a", 129)} {
		if err := CheckCellName(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

// Whom the internal API's TLS lets in, and whom a cell accepts as server.
func TestHandshake(t *testing.T) {
	roots, _ := create(t)
	foreign, _ := create(t)
	get, err := roots.Server.Certificates([]string{"127.0.0.1", "policy.internal"})
	if err != nil {
		t.Fatal(err)
	}
	good := issueCell(t, roots.Cells, "cell-1", 0, AnySpace)
	inst, err := roots.Instances.IssueInstance("app", "0", 0)
	if err != nil {
		t.Fatal(err)
	}
	asServer, err := roots.Server.IssueServer([]string{"cell-1"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		client *Credential // nil: none
		trust  *Authority  // what the client verifies the server against
		host   string
		max    uint16
		err    string // "": passes
	}{
		{"cell", good, roots.Server, "127.0.0.1", 0, ""},
		{"cell by name", good, roots.Server, "policy.internal", 0, ""},
		{"cell over TLS 1.2", good, roots.Server, "127.0.0.1", tls.VersionTLS12, ""},
		{"TLS 1.1", good, roots.Server, "127.0.0.1", tls.VersionTLS11, "protocol version"},
		{"no certificate", nil, roots.Server, "127.0.0.1", 0, "certificate required"},
		{"instance", inst, roots.Server, "127.0.0.1", 0, "unknown certificate authority"},
		{"server's own", asServer, roots.Server, "127.0.0.1", 0, "unknown certificate authority"},
		{"cell of another root", issueCell(t, foreign.Cells, "cell-1", 0, AnySpace), roots.Server, "127.0.0.1", 0, "unknown certificate authority"},
		{"expired", issueCell(t, roots.Cells, "cell-1", -time.Minute, AnySpace), roots.Server, "127.0.0.1", 0, "expired certificate"},
		{"server of another root", good, foreign.Server, "127.0.0.1", 0, "unknown authority"},
		{"the cells root is no server root", good, roots.Cells, "127.0.0.1", 0, "unknown authority"},
		{"wrong host", good, roots.Server, "127.0.0.2", 0, "127.0.0.2"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conf := &tls.Config{RootCAs: tt.trust.Pool(), ServerName: tt.host, MaxVersion: tt.max, MinVersion: tls.VersionTLS10}
			if tt.client != nil {
				pair, err := tt.client.TLS()
				if err != nil {
					t.Fatal(err)
				}
				// Shown whatever the server asks for, as an attacker would.
				conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
			}
			err := handshake(t, ServerTLS(roots.Cells, get), conf)
			switch {
			case tt.err == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
				t.Errorf("got %v, want an error with %q", err, tt.err)
			}
		})
	}
}

// handshake connects the two over loopback and gives the client's error; with
// TLS 1.3 the server's alert comes with the first read.
func handshake(t *testing.T, server, client *tls.Config) error {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	defer func() { l.Close(); <-done }()
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.WriteString(c, "hello")
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Client(raw, client)
	defer c.Close()
	hello, err := io.ReadAll(c)
	if err == nil && string(hello) != "hello" {
		return errors.New("the server said " + string(hello))
	}
	return err
}

func TestServerRenewsItsCertificate(t *testing.T) {
	roots, _ := create(t)
	now := time.Now()
	roots.Server.now = func() time.Time { return now }
	get, err := roots.Server.Certificates([]string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	serial := func() string {
		t.Helper()
		c, err := get(nil)
		if err != nil {
			t.Fatal(err)
		}
		return c.Leaf.SerialNumber.String()
	}
	first := serial()
	now = now.Add(ServerLifetime / 2)
	if serial() != first {
		t.Error("renewed at half of its life")
	}
	now = now.Add(ServerLifetime / 4)
	if serial() == first {
		t.Error("not renewed at three quarters of its life")
	}
}

func TestCellCredentialOnDisk(t *testing.T) {
	roots, _ := create(t)
	dir := filepath.Join(t.TempDir(), "cell-1")
	if err := WriteCell(dir, issueCell(t, roots.Cells, "cell-1", 0, AnySpace), roots.Server); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, CellKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o600 {
		t.Errorf("%s has mode %o, want 600", CellKeyFile, got)
	}
	conf, peer, err := CellTLS(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Peer{Role: RoleCell, Name: "cell-1", Spaces: []Space{AnySpace}, Issued: peer.Issued}, peer); diff != "" {
		t.Errorf("peer (-want +got):\n%s", diff)
	}
	get, err := roots.Server.Certificates([]string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	conf.ServerName = "127.0.0.1"
	if err := handshake(t, ServerTLS(roots.Cells, get), conf); err != nil {
		t.Errorf("with the credential: %v", err)
	}

	// A renewed certificate is taken up without a restart.
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := WriteCell(dir, issueCell(t, roots.Cells, "cell-1", -time.Minute), roots.Server); err != nil {
		t.Fatal(err)
	}
	if err := handshake(t, ServerTLS(roots.Cells, get), conf); err == nil {
		t.Error("the client still shows the credential that was replaced")
	}
}
