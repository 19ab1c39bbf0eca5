package server_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/auth"
	"tulle/policy/ca"
	"tulle/policy/client"
	"tulle/policy/server"
	"tulle/policy/store"
	"tulle/policy/store/postgres"
	"tulle/policy/store/sqlstore"
)

// site is what the servers on one database share, in a directory.
type site struct {
	dir, database, token string
}

func newSite(t *testing.T, database string) *site {
	t.Helper()
	s := &site{dir: t.TempDir(), database: database}
	var entry auth.Token
	s.token, entry = auth.NewToken("alice", auth.Admin)
	text, err := auth.EncodeTokens([]auth.Token{entry})
	if err == nil {
		err = os.WriteFile(filepath.Join(s.dir, "tokens.yaml"), text, 0o600)
	}
	if err == nil {
		_, err = ca.Create(filepath.Join(s.dir, "pki"))
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// open makes a server of the site with the store it stands on.
func (s *site) open(ctx context.Context) (*server.Server, store.Store, error) {
	tokens, err := auth.OpenTokens(filepath.Join(s.dir, "tokens.yaml"), slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, nil, err
	}
	roots, err := ca.Open(filepath.Join(s.dir, "pki"))
	if err != nil {
		return nil, nil, err
	}
	certificate, err := roots.Server.Certificates([]string{"127.0.0.1"})
	if err != nil {
		return nil, nil, err
	}
	db, err := postgres.Open(ctx, s.database, postgres.Options{Options: sqlstore.Options{
		Lease: store.LeaseConfig{Network: netip.MustParsePrefix("10.255.0.0/16"), Bits: 24, Lifetime: time.Hour}, History: 1 << 20}})
	if err != nil {
		return nil, nil, err
	}
	srv, err := server.New(ctx, server.Options{Store: db, Auth: tokens, Log: slog.New(slog.DiscardHandler),
		ExternalAddress: "127.0.0.1:0", InternalAddress: "127.0.0.1:0",
		InternalTLS:     ca.WithJoin(ca.ServerTLS(roots.Cells, certificate), roots.Server),
		InternalOptions: server.InternalOptions{Issuer: roots.Cells}})
	return srv, db, err
}

// serve runs a server for the test's time.
func (s *site) serve(t *testing.T) server.Addresses {
	t.Helper()
	srv, db, err := s.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("the server ended with %v", err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return srv.Addresses()
}

// call sends a request to the external API at address.
func (s *site) call(ctx context.Context, method, address, path, body string) (status int, text string, err error) {
	r, err := http.NewRequestWithContext(ctx, method, "http://"+address+path, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	r.Header.Set("Authorization", "Bearer "+s.token)
	got, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return 0, "", err
	}
	defer got.Body.Close()
	all, err := io.ReadAll(got.Body)
	return got.StatusCode, string(all), err
}

func (s *site) must(t *testing.T, method, address, path, body string) string {
	t.Helper()
	status, text, err := s.call(t.Context(), method, address, path, body)
	if err != nil || status != http.StatusOK {
		t.Fatalf("%s %s: %d %s, %v", method, path, status, text, err)
	}
	return text
}

// siteCell is a cell that hosts one app and follows its watch.
type siteCell struct {
	t      *testing.T
	name   string
	client *client.Client
	lease  api.Lease

	mu       sync.Mutex // guards what follows
	moved    chan struct{}
	policies map[api.Policy]bool
	peers    int
	snapped  int // snapshots taken in
	revision api.Revision
	back     string        // what was wrong about the order of events
	stalled  chan struct{} // events are taken in once it is closed; nil: at once
}

// stall has the cell take in nothing until release is called.
func (c *siteCell) stall() (release func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	wait := make(chan struct{})
	c.stalled = wait
	return sync.OnceFunc(func() { close(wait) })
}

// cell makes one that reaches the servers at address.
func (s *site) cell(t *testing.T, name, address string, number int, app policy.AppID) *siteCell {
	t.Helper()
	roots, err := ca.Open(filepath.Join(s.dir, "pki"))
	if err != nil {
		t.Fatal(err)
	}
	cred, err := roots.Cells.IssueCell(name, []ca.Space{ca.AnySpace}, 0)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), name)
	if err := ca.WriteCell(dir, cred, roots.Server); err != nil {
		t.Fatal(err)
	}
	return s.cellWith(t, dir, address, number, app)
}

// cellWith is cell with a credential that is there.
func (s *site) cellWith(t *testing.T, dir, address string, number int, app policy.AppID) *siteCell {
	t.Helper()
	cl, err := client.New(client.Options{Server: "https://" + address, Credentials: dir,
		BackoffMin: 5 * time.Millisecond, BackoffMax: 50 * time.Millisecond, AckEvery: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	name := cl.Cell()
	c := &siteCell{t: t, name: name, client: cl, moved: make(chan struct{}), policies: map[api.Policy]bool{}}
	if c.lease, err = cl.Lease(t.Context(), api.LeaseRequest{Underlay: netip.MustParseAddr("127.0.0.1"),
		Port: uint16(40000 + number), Mode: api.ModeVXLAN}); err != nil {
		t.Fatal(err)
	}
	if _, err := cl.SetEndpoints(t.Context(), api.EndpointsRequest{Generation: c.lease.Generation, Sequence: 1,
		Endpoints: []api.EndpointRegistration{{Container: name + "-1", Address: c.lease.Subnet.Addr().Next(), App: api.AppRef{GUID: app}, Incarnation: 1}},
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- cl.Watch(ctx, c.handle) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != context.Canceled {
			t.Errorf("watch of %s ended with %v", name, err)
		}
		cl.Close()
	})
	return c
}

func (c *siteCell) handle(ctx context.Context, e api.Event) error {
	c.mu.Lock()
	if wait := c.stalled; wait != nil {
		c.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return ctx.Err()
		}
		c.mu.Lock()
	}
	defer c.mu.Unlock()
	var revision api.Revision
	switch {
	case e.Snapshot != nil:
		clear(c.policies)
		for _, p := range e.Snapshot.Policies {
			c.policies[p] = true
		}
		c.peers = len(e.Snapshot.Peers)
		c.snapped++
		revision = e.Snapshot.Revision
	case e.Delta != nil:
		for _, p := range e.Delta.PoliciesRemoved {
			delete(c.policies, p)
		}
		for _, p := range e.Delta.PoliciesAdded {
			c.policies[p] = true
		}
		// No test changes a peer.
		c.peers += len(e.Delta.PeersSet) - len(e.Delta.PeersRemoved)
		revision = e.Delta.Revision
	case e.Heartbeat != nil:
		revision = e.Heartbeat.Revision
	default: // what has no revision
		return nil
	}
	if revision < c.revision {
		c.back = fmt.Sprintf("went back from revision %d to %d", c.revision, revision)
	}
	c.revision = revision
	close(c.moved)
	c.moved = make(chan struct{})
	return nil
}

func (c *siteCell) snapshots() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.snapped
}

// until waits until cond, which is called with the lock held, holds.
func (c *siteCell) until(what string, cond func() bool) {
	c.t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		c.mu.Lock()
		ok, moved, have, revision, back := cond(), c.moved, len(c.policies), c.revision, c.back
		c.mu.Unlock()
		if back != "" {
			c.t.Fatalf("%s %s", c.name, back)
		}
		if ok {
			return
		}
		select {
		case <-moved:
		case <-deadline:
			c.t.Fatalf("%s has %d policies at revision %d and never %s", c.name, have, revision, what)
		}
	}
}

func (c *siteCell) has(n int) {
	c.t.Helper()
	c.until(fmt.Sprintf("has %d policies", n), func() bool { return len(c.policies) == n })
}

// balancer passes connections on to any of the servers that answer.
type balancer struct {
	net.Listener
	mu       sync.Mutex // guards backends
	backends []string
}

func balance(t *testing.T) *balancer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &balancer{Listener: l}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go b.pass(c)
		}
	}()
	return b
}

func (b *balancer) set(backends ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.backends = backends
}

func (b *balancer) pass(c net.Conn) {
	defer c.Close()
	b.mu.Lock()
	backends := append([]string(nil), b.backends...)
	b.mu.Unlock()
	rand.Shuffle(len(backends), func(i, j int) { backends[i], backends[j] = backends[j], backends[i] })
	for _, address := range backends {
		server, err := net.Dial("tcp", address)
		if err != nil {
			continue
		}
		defer server.Close()
		go func() {
			defer c.Close()
			defer server.Close()
			_, _ = io.Copy(server, c) // one side ending ends the other
		}()
		_, _ = io.Copy(c, server)
		return
	}
}

// replica is a server in a process of its own.
type replica struct {
	server.Addresses
	cmd *exec.Cmd
}

func (s *site) spawn(t *testing.T) *replica {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledReplicas$")
	cmd.Env = append(os.Environ(), "TULLE_REPLICA="+s.database, "TULLE_SITE="+s.dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := &replica{cmd: cmd}
	t.Cleanup(r.kill)
	if err := json.NewDecoder(out).Decode(&r.Addresses); err != nil {
		t.Fatalf("a server in a process of its own: %v", err)
	}
	return r
}

// kill ends the process as a power cut would. Killing twice is no error.
func (r *replica) kill() {
	if r.cmd.ProcessState == nil {
		_ = r.cmd.Process.Kill() // unless it has ended
		_ = r.cmd.Wait()         // it was killed
	}
}

func runReplica(s *site) {
	srv, _, err := s.open(context.Background())
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(srv.Addresses())
	}
	if err == nil {
		err = srv.Run(context.Background())
	}
	fmt.Println(err)
	os.Exit(1)
}
