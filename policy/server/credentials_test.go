package server_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"tulle/policy/api"
	"tulle/policy/ca"
	"tulle/policy/client"
	"tulle/policy/server"
	"tulle/policy/store"
	"tulle/policy/store/pgtest"
)

// invited makes a join token of the site.
func (s *site) invited(t *testing.T, db store.Store, cell string, lifetime time.Duration, spaces ...string) string {
	t.Helper()
	roots, err := ca.Open(filepath.Join(s.dir, "pki"))
	if err != nil {
		t.Fatal(err)
	}
	token := ca.NewJoinToken(roots.Server)
	if err := db.AddJoinToken(t.Context(), store.JoinToken{Sum: ca.SecretSum(token.SecretText()), Cell: cell, Spaces: spaces,
		Lifetime: lifetime, Expires: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	return token.String()
}

// TestJoin makes a cell of a token, on either of two servers.
func TestJoin(t *testing.T) {
	database := pgtest.Start(t).Database()
	s := newSite(t, database)
	one, two := s.serve(t), s.serve(t)
	db := openPostgres(t, database)
	token := s.invited(t, db, "cell-1", time.Hour, "acme/prod", "*")
	dir := filepath.Join(t.TempDir(), "cell")
	name, err := client.Join(t.Context(), "https://"+two.Internal, token, dir)
	if err != nil || name != "cell-1" {
		t.Fatalf("joined as %q, %v", name, err)
	}
	_, peer, err := ca.CellTLS(dir)
	if err != nil || peer.Name != "cell-1" || !peer.HostsAny() || !peer.MayHost("acme", "prod", "") {
		t.Errorf("the credential is of %+v, %v", peer, err)
	}
	s.must(t, "POST", one.External, policies, body("web db tcp 80 80"))
	s.cellWith(t, dir, one.Internal, 1, "web").has(1)

	another := func() string { return filepath.Join(t.TempDir(), "other") }
	if _, err := client.Join(t.Context(), "https://"+one.Internal, token, another()); err == nil || !strings.Contains(err.Error(), "was used or has expired") {
		t.Errorf("a used token: %v", err)
	}
	fresh := s.invited(t, db, "cell-2", time.Hour)
	if _, err := client.Join(t.Context(), "https://"+one.Internal, fresh, dir); err == nil || !strings.Contains(err.Error(), "exists already") {
		t.Errorf("into a directory that has a credential: %v", err)
	}
	foreign := newSite(t, database).invited(t, db, "cell-3", time.Hour)
	if _, err := client.Join(t.Context(), "https://"+one.Internal, foreign, another()); err == nil || !strings.Contains(err.Error(), "not the one that the join token was made for") {
		t.Errorf("a token for another server: %v", err)
	}
	if _, err := client.Join(t.Context(), "https://"+one.Internal, fresh, another()); err != nil {
		t.Errorf("what was refused used the token up: %v", err)
	}
}

// TestJoinNameIsForJoiningAlone: who came in without a certificate gets nothing
// else.
func TestJoinNameIsForJoiningAlone(t *testing.T) {
	w := start(t, func(o *server.Options) {
		roots, err := ca.Create(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		certificate, err := roots.Server.Certificates([]string{"127.0.0.1"})
		if err != nil {
			t.Fatal(err)
		}
		o.InternalTLS = ca.WithJoin(ca.ServerTLS(roots.Cells, certificate), roots.Server)
		o.InternalOptions.Issuer = roots.Cells
	})
	base := "https://" + w.server.Addresses().Internal
	stranger := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{ServerName: ca.JoinName, InsecureSkipVerify: true}}}
	defer stranger.CloseIdleConnections()
	for _, c := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", "/networking/v1/internal/policies", "", 403},
		{"GET", "/networking/v1/internal/watch", "", 403},
		{"PUT", cellPath + "cell-1/lease", "{}", 403},
		{"POST", cellPath + "cell-1/credential", "{}", 403},
		{"PUT", "/networking/v1/internal/tags", "{}", 403},
		{"POST", api.PathJoin, "", 400},
		{"POST", api.PathJoin, `{"secret":"x","request":"y"}`, 400},
		{"POST", api.PathJoin, strings.Repeat(" ", 40<<10) + "{}", 413},
	} {
		r, err := http.NewRequestWithContext(t.Context(), c.method, base+c.path, strings.NewReader(c.body))
		w.must(err)
		got, err := stranger.Do(r)
		w.must(err)
		text := bodyOf(t, got)
		agrees(t, c.method, c.path, got.StatusCode, got.Header, text)
		if got.StatusCode != c.status {
			t.Errorf("%s %s: %d %s, want %d", c.method, c.path, got.StatusCode, text, c.status)
		}
	}
	_, request, err := ca.NewRequest()
	w.must(err)
	ask, err := json.Marshal(api.Join{Secret: "guessed", Request: string(request)})
	w.must(err)
	got, err := stranger.Post(base+api.PathJoin, "application/json", strings.NewReader(string(ask)))
	w.must(err)
	if text := bodyOf(t, got); got.StatusCode != 403 || string(text) != `{"error": "the join token is not known, was used or has expired"}` {
		t.Errorf("a guess: %d %s", got.StatusCode, text)
	}
}

// TestCredentialRenewsItself has a cell whose credential lives for seconds: it
// goes on over several lives, under one stream as far as it can tell.
func TestCredentialRenewsItself(t *testing.T) {
	database := pgtest.Start(t).Database()
	s := newSite(t, database)
	at := s.serve(t)
	db := openPostgres(t, database)
	dir := filepath.Join(t.TempDir(), "cell")
	const life = 4 * time.Second
	if _, err := client.Join(t.Context(), "https://"+at.Internal, s.invited(t, db, "cell-1", life, "*"), dir); err != nil {
		t.Fatal(err)
	}
	first, _, err := ca.CellLife(dir)
	if err != nil {
		t.Fatal(err)
	}
	c := s.cellWith(t, dir, at.Internal, 1, "web")
	s.must(t, "POST", at.External, policies, body("web db tcp 80 80"))
	c.has(1)
	snapshots := c.snapshots()
	for n := 2; time.Since(first) < 3*life; n++ {
		s.must(t, "POST", at.External, policies, body(fmt.Sprint("web db tcp 80 ", 80+n)))
		c.has(n)
		time.Sleep(50 * time.Millisecond) // some changes a second, for three lives
	}
	issued, ends, err := ca.CellLife(dir)
	if err != nil || !issued.After(first.Add(life)) || ends.Before(time.Now()) {
		t.Errorf("issued %s, ends %s, %v; the first was issued %s and lived for %s", issued, ends, err, first, life)
	}
	if status := c.client.Status(); status.Reconnects != 0 || !status.Connected {
		t.Errorf("the watch was interrupted: %+v", status)
	}
	if got := c.snapshots(); got != snapshots {
		t.Errorf("%d snapshots, want %d: the stream did not go on from where it was", got, snapshots)
	}
	entries, err := db.Audit(t.Context(), 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	renewed := 0
	for _, e := range entries {
		if e.Action == api.CellRenew && e.Who == "cell cell-1" {
			renewed++
		}
	}
	if renewed == 0 {
		t.Error("the audit record knows of no renewal")
	}
}

// TestRevocation revokes a cell on one server while it watches another: its stream
// and its open connection end, the others lose it as a peer, and a new credential
// lets it back in.
func TestRevocation(t *testing.T) {
	database := pgtest.Start(t).Database()
	s := newSite(t, database)
	one, two := s.serve(t), s.serve(t)
	db := openPostgres(t, database) // the third server, which revokes
	a, b := s.cell(t, "a", one.Internal, 1, "web"), s.cell(t, "b", two.Internal, 2, "db")
	s.must(t, "POST", one.External, policies, body("web db tcp 80 80"))
	a.has(1)
	b.has(1)
	if _, err := db.RevokeCell(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); a.client.Connected(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the revoked cell's stream goes on")
		}
	}
	// On the connection that is open, and on new ones, at every server.
	_, err := a.client.Lease(t.Context(), api.LeaseRequest{Underlay: a.lease.Subnet.Addr(), Port: 1, Mode: api.ModeVXLAN})
	if err == nil || !strings.Contains(err.Error(), "cell a: the cell's credential was revoked on ") || !strings.Contains(err.Error(), "status 403") {
		t.Errorf("a lease for a revoked cell: %v", err)
	}
	s.must(t, "POST", two.External, policies, body("web db tcp 81 81"))
	b.has(2)
	b.until("loses its peer", func() bool { return b.peers == 0 })
	a.mu.Lock()
	have := len(a.policies)
	a.mu.Unlock()
	if have != 1 {
		t.Errorf("the revoked cell was told of %d policies, want 1", have)
	}
	// The same name with a new credential is good at once.
	again := s.cell(t, "a", two.Internal, 1, "web")
	again.has(2)
	b.until("has its peer again", func() bool { return b.peers == 1 })
	if again.lease.Subnet != a.lease.Subnet || again.lease.Generation <= a.lease.Generation {
		t.Errorf("the new cell has %+v, the old one had %+v", again.lease, a.lease)
	}
}

// TestRevokedInTheMiddleOfARequest: who was let in before the revocation, and is
// slow to say what they want, gets neither a new credential nor the lease back.
func TestRevokedInTheMiddleOfARequest(t *testing.T) {
	r := newCellsRig(t)
	_, request, err := ca.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		method, what string
		body         any
		known        bool // the server knows of the revocation, where it is the one to refuse
	}{
		{"POST", "credential", api.Renewal{Request: string(request)}, false},
		{"PUT", "lease", leaseRequest, false},
		{"POST", "ack", api.Ack{Epoch: r.store.Epoch(), Revision: 1}, true},
	} {
		name := "cell-of-a-" + c.what
		cell := r.cell(name, "*")
		r.put(cell, cellPath+name+"/lease", leaseRequest, &api.Lease{})
		body, err := json.Marshal(c.body)
		if err != nil {
			t.Fatal(err)
		}
		ask, err := http.NewRequestWithContext(t.Context(), c.method, r.url+cellPath+name+"/"+c.what, &lateBody{Reader: bytes.NewReader(body), first: func() {
			if _, err := r.store.RevokeCell(t.Context(), name); err != nil {
				t.Error(err)
			}
			for c.known {
				got, _ := r.do(cell, "GET", "/networking/v1/internal/policies", nil)
				c.known = got.StatusCode == 200
			}
		}})
		if err != nil {
			t.Fatal(err)
		}
		// The body is asked for once the cell is let in.
		ask.Header.Set("Expect", "100-continue")
		cell.Transport.(*http.Transport).ExpectContinueTimeout = time.Minute
		got, err := cell.Do(ask)
		if err != nil {
			t.Fatal(err)
		}
		if text := string(bodyOf(t, got)); got.StatusCode != 403 || !strings.Contains(text, "the cell's credential was revoked on ") {
			t.Errorf("%s: %d %s", c.what, got.StatusCode, text)
		}
		cells, err := r.store.Cells(t.Context())
		if err != nil || len(cells) != 0 {
			t.Errorf("%s: leases of %v, %v", c.what, cells, err)
		}
	}
}

// lateBody does something before it gives anything.
type lateBody struct {
	io.Reader
	first func()
	once  sync.Once
}

func (b *lateBody) Read(p []byte) (int, error) {
	b.once.Do(b.first)
	return b.Reader.Read(p)
}

// TestRevocationByOtherClocks: what is issued before a revocation is void, and what
// is issued after it is good, however far the server's clock and the database's are
// from each other.
func TestRevocationByOtherClocks(t *testing.T) {
	key, request, err := ca.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	for name, off := range map[string]time.Duration{"the database's is behind": -time.Minute, "it is ahead": time.Minute} {
		t.Run(name, func(t *testing.T) {
			r := newCellsRigBy(t, func() time.Time { return time.Now().Add(off) })
			revoke := func() {
				t.Helper()
				if _, err := r.store.RevokeCell(t.Context(), "cell-1"); err != nil {
					t.Fatal(err)
				}
			}
			post := func(path string, body, into any) {
				t.Helper()
				text, err := json.Marshal(body)
				if err != nil {
					t.Fatal(err)
				}
				got, answer := r.do(r.cell("other", "*"), "POST", path, text)
				if err := json.Unmarshal([]byte(answer), into); err != nil || got.StatusCode != 200 {
					t.Fatalf("%s: %d %s", path, got.StatusCode, answer)
				}
			}
			// expect asks with a credential until a revocation has come to the server.
			expect := func(what, certificate string, status int) {
				t.Helper()
				c := r.as(&ca.Credential{CertPEM: []byte(certificate), KeyPEM: key})
				for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
					got, text := r.do(c, "GET", "/networking/v1/internal/policies", nil)
					if got.StatusCode == status {
						return
					}
					if time.Now().After(deadline) {
						t.Fatalf("%s: %d %s, want %d", what, got.StatusCode, text, status)
					}
				}
			}
			join := func() string {
				t.Helper()
				secret := ca.NewJoinToken(r.roots.Server).SecretText()
				if err := r.store.AddJoinToken(t.Context(), store.JoinToken{Sum: ca.SecretSum(secret), Cell: "cell-1", Spaces: []string{"*"},
					Lifetime: time.Hour, Expires: time.Now().Add(time.Hour)}); err != nil {
					t.Fatal(err)
				}
				var joined api.Joined
				post(api.PathJoin, api.Join{Secret: secret, Request: string(request)}, &joined)
				return joined.Certificate
			}
			first := join()
			expect("joined", first, 200)
			text, err := json.Marshal(api.Renewal{Request: string(request)})
			if err != nil {
				t.Fatal(err)
			}
			got, answer := r.do(r.as(&ca.Credential{CertPEM: []byte(first), KeyPEM: key}), "POST", cellPath+"cell-1/credential", text)
			var renewed api.Renewed
			if err := json.Unmarshal([]byte(answer), &renewed); err != nil || got.StatusCode != 200 {
				t.Fatalf("renewal: %d %s", got.StatusCode, answer)
			}
			expect("renewed", renewed.Certificate, 200)
			revoke()
			expect("joined before", first, 403)
			expect("renewed before", renewed.Certificate, 403)
			expect("joined after", join(), 200)
		})
	}
}

// TestRevokedWhileTheServerWasDown: a server that starts knows what was revoked.
func TestRevokedWhileTheServerWasDown(t *testing.T) {
	var old *ca.Credential
	r := newCellsRig(t, func(s store.Store, roots *ca.Roots) {
		var err error
		if old, err = roots.Cells.IssueCell("cell-2", nil, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := s.RevokeCell(t.Context(), "cell-2"); err != nil {
			t.Fatal(err)
		}
	})
	ask := func(cred *ca.Credential) (int, string) {
		got, err := r.as(cred).Get(r.url + "/networking/v1/internal/policies")
		if err != nil {
			t.Fatal(err)
		}
		return got.StatusCode, string(bodyOf(t, got))
	}
	for _, name := range []string{"cell-1", "cell-2"} {
		cred, err := r.roots.Cells.IssueCell(name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		if status, text := ask(cred); status != 200 {
			t.Errorf("%s, issued after the revocation: %d %s", name, status, text)
		}
	}
	if status, text := ask(old); status != 403 || !strings.Contains(text, "revoked") {
		t.Errorf("issued before it: %d %s", status, text)
	}
}

func bodyOf(t *testing.T, r *http.Response) []byte {
	t.Helper()
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
