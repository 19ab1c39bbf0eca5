package client_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"tulle/policy/api"
	"tulle/policy/ca"
	"tulle/policy/client"
	"tulle/policy/hub"
)

// strange serves cell "a" by h in place of a policy server, and makes its client.
func strange(t *testing.T, h http.HandlerFunc, opt client.Options) *client.Client {
	t.Helper()
	roots, err := ca.Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	certs, err := roots.Server.Certificates([]string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(h)
	srv.EnableHTTP2 = true
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	srv.TLS = ca.ServerTLS(roots.Cells, certs)
	cert, err := certs(nil)
	if err != nil {
		t.Fatal(err)
	}
	srv.TLS.Certificates = []tls.Certificate{*cert} // or httptest puts its own there
	srv.StartTLS()
	t.Cleanup(srv.Close)
	cred, err := roots.Cells.IssueCell("a", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "a")
	if err := ca.WriteCell(dir, cred, roots.Server); err != nil {
		t.Fatal(err)
	}
	opt.Server, opt.Credentials = srv.URL, dir
	opt.BackoffMin, opt.BackoffMax = time.Millisecond, time.Millisecond
	c, err := client.New(opt)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A stream on which nothing comes any more is dead, whatever the connection
// says; the next one goes on from what was handled.
func TestSilentStreamIsGivenUp(t *testing.T) {
	asked := make(chan string, 16)
	c := strange(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != api.PathWatch {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		asked <- r.URL.RawQuery
		io.WriteString(w, `{"snapshot":{"epoch":"e","revision":7}}`+"\n")
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}, client.Options{Silence: 40 * time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Watch(ctx, func(context.Context, api.Event) error { return nil }) }()
	for _, want := range []string{"epoch=&revision=0", "epoch=e&revision=7", "epoch=e&revision=7"} {
		if got := <-asked; got != want {
			t.Errorf("asked for %q, want %q", got, want)
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Watch: %v", err)
	}
	c.Close()
}

// What is no stream of events never reaches the handler.
func TestNonsenseIsNotHandledAsEvents(t *testing.T) {
	lines := []string{
		"", "null\n", "{}\n", "[]\n", "not json\n", `{"snapshot":{"epoch":`,
		`{"delta":{"revision":8}}` + "\n",         // no snapshot before it
		`{"heartbeat":{"revision":8}}` + "\n",     // neither
		`{"something_new":{"revision":8}}` + "\n", // of a later version
	}
	next := make(chan string)
	c := strange(t, func(w http.ResponseWriter, r *http.Request) {
		select {
		case line := <-next:
			io.WriteString(w, line)
		case <-r.Context().Done():
		}
	}, client.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- c.Watch(ctx, func(_ context.Context, e api.Event) error {
			t.Errorf("handled %+v", e)
			return nil
		})
	}()
	for _, line := range lines {
		next <- line
	}
	next <- "" // the last line's stream is over
	if c.Connected() {
		t.Error("connected without having heard an event")
	}
	cancel()
	<-done
}

// Who looks while the first event is being taken in is told when the client
// counts as connected, and then when it no longer does.
func TestConnectionTellsItsChanges(t *testing.T) {
	c := strange(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `{"snapshot":{"epoch":"e","revision":1}}`+"\n")
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}, client.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	begun := make(chan (<-chan struct{}), 1)
	done := make(chan error, 1)
	go func() {
		done <- c.Watch(ctx, func(context.Context, api.Event) error {
			connected, changed := c.Connection()
			if connected {
				t.Error("connected before the first event is taken in")
			}
			begun <- changed
			return nil
		})
	}()
	<-<-begun
	connected, changed := c.Connection()
	if !connected {
		t.Error("not connected though told so")
	}
	cancel()
	<-changed
	if c.Connected() {
		t.Error("connected though the watch is over")
	}
	<-done
}

func TestStatusErrorCarriesTheServersWords(t *testing.T) {
	answer := `{"error": "cell \"a\" is not welcome"}`
	c := strange(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		io.WriteString(w, answer)
	}, client.Options{})
	_, err := c.Lease(t.Context(), api.LeaseRequest{})
	var status *client.StatusError
	if !errors.As(err, &status) || status.Code != http.StatusForbidden || status.Text != `cell "a" is not welcome` {
		t.Errorf("got %v", err)
	}
	answer = "<html>"
	err = c.Release(t.Context())
	if !errors.As(err, &status) || status.Text != "Forbidden" {
		t.Errorf("a body that is no error body: %v", err)
	}
}

func TestNewRefusesBadOptions(t *testing.T) {
	for _, server := range []string{"", "127.0.0.1:4003", "http://127.0.0.1:4003", "https://", "https://[::1"} {
		if _, err := client.New(client.Options{Server: server, Credentials: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "https://host:port") {
			t.Errorf("server %q: %v", server, err)
		}
	}
	if _, err := client.New(client.Options{Server: "https://127.0.0.1:1", Credentials: t.TempDir()}); err == nil {
		t.Error("an empty credential directory is accepted")
	}
}

func TestNoGoroutineIsLeft(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("life", func(t *testing.T) {
		r := newRig(t, hub.Options{})
		r.cell("a", client.Options{}).runs("web")
	})
	// Connections wind down on goroutines that nobody waits for; each is on its
	// way out, so that yielding is enough.
	deadline := time.Now().Add(patience)
	for runtime.NumGoroutine() > before && time.Now().Before(deadline) {
		runtime.Gosched()
	}
	if after := runtime.NumGoroutine(); after > before {
		buf := make([]byte, 1<<16)
		t.Errorf("%d goroutines before, %d after:\n%s", before, after, buf[:runtime.Stack(buf, true)])
	}
}
