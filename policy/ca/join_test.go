package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestJoinTokenText(t *testing.T) {
	roots, err := Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	token := NewJoinToken(roots.Server)
	got, err := ParseJoinToken(" " + token.String() + "\n")
	if err != nil || got != token {
		t.Errorf("read back: %v, %v; want %v", got, err, token)
	}
	for _, text := range []string{"", "tulle-join-", token.String()[1:], token.String()[:40], token.String() + "AA", strings.Replace(token.String(), "tulle-join-", "tulle-join-!", 1)} {
		if _, err := ParseJoinToken(text); err == nil || !strings.Contains(err.Error(), "join-token") {
			t.Errorf("%q: %v; want an error that says where a token comes from", text, err)
		}
	}
	if other := NewJoinToken(roots.Server); other.Secret == token.Secret {
		t.Error("two tokens have one secret")
	}
}

// joining runs one between two configurations.
func joining(t *testing.T, server, client *tls.Config) (clientErr, serverErr error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	deadline := time.Now().Add(30 * time.Second)
	_ = errors.Join(a.SetDeadline(deadline), b.SetDeadline(deadline))
	done := make(chan error, 1)
	s := tls.Server(a, server)
	go func() {
		done <- s.Handshake()
		_ = s.Close()
	}()
	c := tls.Client(b, client)
	clientErr = c.Handshake()
	if clientErr == nil {
		if _, err := c.Read(make([]byte, 1)); err != nil && !strings.Contains(err.Error(), "EOF") {
			clientErr = err // with TLS 1.3 a refusal comes after the handshake
		}
	}
	b.Close()
	return clientErr, <-done
}

// TestJoinTLS: without a certificate only the join name gets in, and the client
// goes by the root in its token and by the host's name.
func TestJoinTLS(t *testing.T) {
	roots, err := Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	others, err := Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := roots.Server.Certificates([]string{"policy.example.org", "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	server := WithJoin(ServerTLS(roots.Cells, certificate), roots.Server)
	for name, c := range map[string]struct {
		root *Authority
		host string
		want string
	}{
		"by name":    {roots.Server, "policy.example.org", ""},
		"by address": {roots.Server, "127.0.0.1", ""},
		"other root": {others.Server, "policy.example.org", "not the one that the join token was made for"},
		"other host": {roots.Server, "elsewhere.example.org", "not elsewhere.example.org"},
		"cells root": {roots.Cells, "policy.example.org", "not the one that the join token was made for"},
	} {
		conf, root := JoinTLS(NewJoinToken(c.root), c.host)
		err, _ := joining(t, server, conf)
		switch {
		case c.want == "" && (err != nil || !bytes.Equal(root(), roots.Server.CertPEM())):
			t.Errorf("%s: %v, root %s", name, err, root())
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
	}
	if err, _ := joining(t, server, &tls.Config{RootCAs: roots.Server.Pool(), ServerName: "policy.example.org"}); err == nil {
		t.Error("who has no certificate gets in under another name than the join name")
	}
}

func TestSignCell(t *testing.T) {
	roots, err := Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	key, request, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	spaces := []Space{{Org: "acme", Space: "prod"}}
	cert, err := roots.Cells.SignCell(request, "cell-1", spaces, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	credential := &Credential{CertPEM: cert, KeyPEM: key}
	if _, err := credential.TLS(); err != nil {
		t.Fatal(err)
	}
	leaf, err := credential.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	p, err := Identify(leaf)
	if diff := cmp.Diff(Peer{Role: RoleCell, Name: "cell-1", Spaces: spaces, Issued: p.Issued}, p); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if p.Issued.Before(begin.Truncate(time.Microsecond)) || p.Issued.After(time.Now()) {
		t.Errorf("issued %s, want now", p.Issued)
	}
	bad := func(key any) []byte {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	good, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	forged := bad(good)
	block, _ := pem.Decode(forged)
	block.Bytes[len(block.Bytes)-1] ^= 1
	for name, request := range map[string][]byte{
		"nothing": nil, "a certificate": cert, "a weak key": bad(weak), "another's signature": pem.EncodeToMemory(block),
		"garbage": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: []byte("garbage")}),
	} {
		if _, err := roots.Cells.SignCell(request, "cell-1", nil, 0); !errors.Is(err, ErrRequest) {
			t.Errorf("%s: %v, want %v", name, err, ErrRequest)
		}
	}
	if _, err := roots.Server.SignCell(request, "cell-1", nil, 0); !errors.Is(err, ErrRole) {
		t.Errorf("by another root: %v, want %v", err, ErrRole)
	}
}

// TestReplacementCutOff stops a replacement at each of its steps: what is loaded
// is always a whole credential.
func TestReplacementCutOff(t *testing.T) {
	roots, err := Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	issue := func() *Credential {
		c, err := roots.Cells.IssueCell("cell-1", nil, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	put := func(dir, name string, text []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before, after := issue(), issue()
	for name, c := range map[string]struct {
		cut  func(dir string)
		want *Credential
	}{
		"at once":           {func(string) {}, before},
		"key written":       {func(d string) { put(d, "cell-key.pem.new", after.KeyPEM) }, before},
		"key half written":  {func(d string) { put(d, "cell-key.pem.new", after.KeyPEM[:20]) }, before},
		"both written":      {func(d string) { put(d, "cell-key.pem.new", after.KeyPEM); put(d, "cell.pem.new", after.CertPEM) }, before},
		"first one renamed": {func(d string) { put(d, "cell-key.pem.new", after.KeyPEM); put(d, "cell.pem", after.CertPEM) }, after},
		"done": {func(d string) {
			if err := ReplaceCell(d, after); err != nil {
				t.Error(err)
			}
		}, after},
	} {
		dir := filepath.Join(t.TempDir(), "cell")
		if err := WriteCell(dir, before, roots.Server); err != nil {
			t.Fatal(err)
		}
		c.cut(dir)
		pair, err := loadCell(dir)
		want, _ := c.want.TLS()
		if err != nil || !bytes.Equal(pair.Certificate[0], want.Certificate[0]) {
			t.Errorf("%s: %v, not the credential that was to be found", name, err)
		}
		// What comes next may be cut off too, here by a name that cannot be had.
		taken := filepath.Join(dir, "cell.pem.new")
		if err := errors.Join(os.RemoveAll(taken), os.MkdirAll(filepath.Join(taken, "x"), 0o700)); err != nil {
			t.Fatal(err)
		}
		if err := ReplaceCell(dir, issue()); err == nil {
			t.Errorf("%s: replaced, though %s cannot be written", name, taken)
		}
		if pair, err = loadCell(dir); err != nil || !bytes.Equal(pair.Certificate[0], want.Certificate[0]) {
			t.Errorf("%s, cut off again: %v, not the credential that was to be found", name, err)
		}
		if err := os.RemoveAll(taken); err != nil {
			t.Fatal(err)
		}
		// And what comes next mends it.
		if err := ReplaceCell(dir, after); err != nil {
			t.Errorf("%s, replaced again: %v", name, err)
		}
		files, _ := os.ReadDir(dir)
		if len(files) != 3 {
			t.Errorf("%s: left %v", name, files)
		}
	}
}
