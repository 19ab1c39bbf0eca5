package foundationtest

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"tulle/policy/foundation"
)

// Foundation is the two servers, up.
type Foundation struct {
	Policies *PolicyServer
	Leases   *Controller
	certs    *certs
}

// New starts both; they end with the test. Network is the overlay's, cut into /24.
func New(t testing.TB, network netip.Prefix) *Foundation {
	t.Helper()
	f := &Foundation{certs: newCerts(t)}
	f.Policies = newPolicyServer(t, f.certs)
	f.Leases = newController(t, f.certs, network)
	return f
}

// Options are for a cell of this foundation. They ask often.
func (f *Foundation) Options() foundation.Options {
	of := func(s *server) foundation.Server {
		return foundation.Server{URL: "https://" + s.addr, CA: f.certs.path("ca.pem"), Cert: f.certs.path("client.pem"), Key: f.certs.path("client-key.pem")}
	}
	return foundation.Options{
		Cell: "cell", Policies: of(&f.Policies.server), Leases: of(&f.Leases.server), Network: f.Leases.network,
		PollPolicies: 20 * time.Millisecond, PollLeases: 30 * time.Millisecond, Timeout: 5 * time.Second,
	}
}

// Files are the paths of CA, client certificate and key.
func (f *Foundation) Files() (ca, cert, key string) {
	return f.certs.path("ca.pem"), f.certs.path("client.pem"), f.certs.path("client-key.pem")
}

// server is what the two have in common: an address that stays, and ways to fail.
type server struct {
	t       testing.TB
	certs   *certs
	addr    string
	handler http.Handler

	mu   sync.Mutex // guards the fields below, and the state of what embeds it
	http *http.Server
	done chan struct{}
	fail func(w http.ResponseWriter, r *http.Request) bool // answers in the handler's place
	log  []string                                          // requests, "GET /path?query"
}

func (s *server) init(t testing.TB, c *certs, h http.Handler) {
	t.Helper()
	s.t, s.certs, s.handler, s.addr = t, c, h, "127.0.0.1:0"
	s.Start()
	t.Cleanup(s.Stop)
}

// URL is where the server is, or was.
func (s *server) URL() string { return "https://" + s.addr }

// Start makes the server listen, where it listened before.
func (s *server) Start() {
	s.t.Helper()
	l, err := net.Listen("tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.addr = l.Addr().String()
	srv := &http.Server{Handler: http.HandlerFunc(s.serve), TLSConfig: s.certs.config(), ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	s.mu.Lock()
	s.http, s.done = srv, done
	s.mu.Unlock()
	go func() {
		defer close(done)
		_ = srv.ServeTLS(l, "", "") // ends with Stop
	}()
}

// Stop ends the server as a kill does: connections are gone, its port is closed.
// What it stores stays.
func (s *server) Stop() {
	s.mu.Lock()
	srv, done := s.http, s.done
	s.http = nil
	s.mu.Unlock()
	if srv == nil {
		return
	}
	_ = srv.Close()
	<-done
}

// Fail answers every request with a status and a body; status 0 ends that.
func (s *server) Fail(status int, body string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = nil
	if status != 0 {
		s.fail = func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
			return true
		}
	}
}

// FailOn is Fail for the requests whose path ends so.
func (s *server) FailOn(suffix string, status int, body string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, suffix) {
			return false
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
		return true
	}
}

// Hang takes requests and answers none, until the client gives up.
func (s *server) Hang() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = func(_ http.ResponseWriter, r *http.Request) bool {
		<-r.Context().Done()
		return true
	}
}

// Requests are those since the last call.
func (s *server) Requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	log := s.log
	s.log = nil
	return log
}

// Until waits for a request that begins with prefix.
func (s *server) Until(ctx context.Context, prefix string) error {
	for {
		s.mu.Lock()
		for i, r := range s.log {
			if len(r) >= len(prefix) && r[:len(prefix)] == prefix {
				s.log = s.log[i+1:]
				s.mu.Unlock()
				return nil
			}
		}
		s.mu.Unlock()
		select {
		case <-ctx.Done():
			return fmt.Errorf("no request %s: %w", prefix, ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func (s *server) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.log = append(s.log, r.Method+" "+r.URL.String())
	fail := s.fail
	s.mu.Unlock()
	if fail != nil && fail(w, r) {
		return
	}
	s.handler.ServeHTTP(w, r)
}

// refuse is the originals' error, not escaped (reference: policy-api, 2.1).
func refuse(w http.ResponseWriter, status int, text string) {
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"error": "%s"}`, text)
}
