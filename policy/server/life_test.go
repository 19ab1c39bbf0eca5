package server_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/ca"
	"tulle/policy/server"
	"tulle/policy/store"
	"tulle/policy/store/sqlite"
)

// options of a server over a fresh store, for tests that make it themselves.
func options(t *testing.T, w *world) server.Options {
	t.Helper()
	dir := t.TempDir()
	roots, err := ca.Create(dir)
	w.must(err)
	certificate, err := roots.Server.Certificates([]string{"127.0.0.1"})
	w.must(err)
	return server.Options{Store: w.store, Log: slog.New(slog.DiscardHandler), ExternalAddress: "127.0.0.1:0", InternalAddress: "127.0.0.1:0",
		InternalTLS: ca.ServerTLS(roots.Cells, certificate), AdminSocket: filepath.Join(dir, "sock")}
}

func TestTakenAddressLeavesNothingOpen(t *testing.T) {
	w := start(t)
	o := options(t, w)
	taken := w.server.Addresses().External
	o.InternalAddress = taken
	// The external socket is open by the time the internal one fails.
	free, err := net.Listen("tcp", "127.0.0.1:0")
	w.must(err)
	o.ExternalAddress = free.Addr().String()
	w.must(free.Close())
	_, err = server.New(t.Context(), o)
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "internal address "+taken) {
		t.Errorf("a taken address: %v", err)
	}
	if c, err := net.Dial("tcp", o.ExternalAddress); err == nil {
		c.Close()
		t.Errorf("the external socket %s is still open", o.ExternalAddress)
	}
	if _, err := os.Stat(o.AdminSocket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("admin socket: %v", err)
	}
}

func TestCloseWithoutRun(t *testing.T) {
	w := start(t)
	s, err := server.New(t.Context(), options(t, w))
	w.must(err)
	a := s.Addresses()
	w.must(s.Close())
	w.must(s.Close())
	for _, address := range []string{a.External, a.Internal} {
		if c, err := net.Dial("tcp", address); err == nil {
			c.Close()
			t.Errorf("%s is still open", address)
		}
	}
	if _, err := os.Stat(a.Admin); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("admin socket: %v", err)
	}
}

// slow is a store whose creates wait.
type slow struct {
	store.Store
	began, release chan struct{}
}

func (s slow) AddPolicies(ctx context.Context, ps []policy.Policy) (api.Revision, error) {
	close(s.began)
	<-s.release
	return s.Store.AddPolicies(ctx, ps)
}

// TestStopFinishesWhatIsUnderWay stops a server while a create is stored: the
// create is answered, and nobody new gets in.
func TestStopFinishesWhatIsUnderWay(t *testing.T) {
	w := start(t)
	o := options(t, w)
	o.Auth = w.auth
	s := slow{w.store, make(chan struct{}), make(chan struct{})}
	o.Store = s
	srv, err := server.New(t.Context(), o)
	w.must(err)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()
	w.base = "http://" + srv.Addresses().External
	answered := make(chan answer, 1)
	go func() { answered <- w.call("POST", policies, w.admin, body("a b tcp 1 1")) }()
	<-s.began
	stop()
	// Shutting down closes the listeners first.
	for {
		c, err := net.Dial("tcp", srv.Addresses().External)
		if err != nil {
			break
		}
		c.Close()
	}
	close(s.release)
	w.expect("the create under way", <-answered, 200, "{}")
	w.must(<-done)
	if _, err := os.Stat(o.AdminSocket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("admin socket after the stop: %v", err)
	}
}

// TestStopWaitsForNobodySilent stops a server to which clients have connected who have
// not asked anything: it does not wait for them as long as for who has.
func TestStopWaitsForNobodySilent(t *testing.T) {
	w := start(t)
	o := options(t, w)
	o.Auth = w.auth
	srv, err := server.New(t.Context(), o)
	w.must(err)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()
	w.base = "http://" + srv.Addresses().External
	for _, at := range []string{srv.Addresses().External, srv.Addresses().Internal} {
		c, err := net.Dial("tcp", at)
		w.must(err)
		defer c.Close()
	}
	// It is accepted behind them.
	w.call("GET", policies, w.admin, "")
	begun := time.Now()
	stop()
	w.must(<-done)
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("it took %v to stop", took)
	}
}

// TestLeaseExpires sees a lease end in time without anybody asking.
func TestLeaseExpires(t *testing.T) {
	s, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "short.db"), sqlite.Options{
		Lease: store.LeaseConfig{Network: netip.MustParsePrefix("10.255.0.0/16"), Bits: 24, Lifetime: time.Second},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i := range 2 {
		_, err = s.Lease(t.Context(), fmt.Sprint("cell-", i), api.LeaseRequest{Mode: api.ModeVXLAN, Port: 1,
			Underlay: netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})})
		if err != nil {
			t.Fatal(err)
		}
	}
	w := start(t, func(o *server.Options) { o.Store = s })
	for {
		changed := s.Changed()
		state, err := s.State(t.Context())
		w.must(err)
		if len(state.Peers) == 0 {
			break
		}
		<-changed
	}
}

func TestExternalTLS(t *testing.T) {
	dir := t.TempDir()
	roots, err := ca.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := roots.Server.Certificates([]string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	w := start(t, func(o *server.Options) { o.ExternalTLS = &tls.Config{GetCertificate: certificate} })
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots.Server.Pool()}}}
	defer client.CloseIdleConnections()
	got, err := client.Get("https://" + w.server.Addresses().External + "/health")
	w.must(err)
	got.Body.Close()
	if got.StatusCode != 200 || got.Header.Get("Strict-Transport-Security") != "max-age=31536000" {
		t.Errorf("%d %v", got.StatusCode, got.Header)
	}
}
