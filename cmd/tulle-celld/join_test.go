package main

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tulle/policy/ca"
	"tulle/policy/server"
	"tulle/policy/store"
	"tulle/policy/store/sqlite"
)

// TestJoinCommand gets a credential for a token, and says what is wrong where
// there is none to be had.
func TestJoinCommand(t *testing.T) {
	dir := t.TempDir()
	roots, err := ca.Create(filepath.Join(dir, "pki"))
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := roots.Server.Certificates([]string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	s, err := sqlite.Open(t.Context(), filepath.Join(dir, "tulle.db"), sqlite.Options{
		Lease: store.LeaseConfig{Network: netip.MustParsePrefix("10.249.0.0/16"), Bits: 24, Lifetime: time.Hour}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	in, err := server.NewInternal(t.Context(), s, server.InternalOptions{Issuer: roots.Cells})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := server.InternalServer(in, ca.WithJoin(ca.ServerTLS(roots.Cells, certificate), roots.Server), slog.New(slog.DiscardHandler))
	served := make(chan error, 1)
	go func() { served <- srv.ServeTLS(l, "", "") }()
	defer func() {
		srv.Close()
		<-served
	}()
	token := ca.NewJoinToken(roots.Server)
	if err := s.AddJoinToken(t.Context(), store.JoinToken{Sum: ca.SecretSum(token.SecretText()), Cell: "cell-9", Spaces: []string{"*"},
		Lifetime: time.Hour, Expires: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	url, out := "https://"+l.Addr().String(), filepath.Join(dir, "credential")
	for _, c := range []struct {
		args   []string
		status int
		text   string
	}{
		{[]string{"join", "--server", url, "--out", out}, 2, "--server, --token and --out are needed"},
		{[]string{"join", "--server", url, "--token", "x", "--out", out}, 1, "this is no join token"},
		{[]string{"join", "--server", "http://" + l.Addr().String(), "--token", token.String(), "--out", out}, 1, "expected https://host:port"},
		{[]string{"join", "--server", url, "--token", token.String(), "--out", out}, 0, "cell cell-9: " + out},
		{[]string{"join", "--server", url, "--token", token.String(), "--out", filepath.Join(dir, "again")}, 1, "was used or has expired"},
	} {
		var stdout, stderr bytes.Buffer
		status := run(context.Background(), c.args, &stdout, &stderr)
		if said := stdout.String() + stderr.String(); status != c.status || !strings.Contains(said, c.text) {
			t.Errorf("%v: %d %s; want %d and %q", c.args, status, said, c.status, c.text)
		}
	}
	if _, peer, err := ca.CellTLS(out); err != nil || peer.Name != "cell-9" || !peer.HostsAny() {
		t.Errorf("the credential is of %+v, %v", peer, err)
	}
}
