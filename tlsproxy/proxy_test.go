package tlsproxy

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

// patience bounds every wait of these tests.
const patience = 10 * time.Second

func certificate(t testing.TB) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "container"},
		DNSNames: []string{"web.apps.internal"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// nobody listens there; a port that was let go of may be the proxy's next.
const nobody = "127.0.0.1:1"

func listenTCP(t testing.TB) *net.TCPListener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

// fixture is a proxy in front of a backend of the test's.
type fixture struct {
	*Proxy
	addr   string
	served chan error
}

func serve(t testing.TB, backend string, o Options) *fixture {
	t.Helper()
	return serveSite(t, o, site(certificate(t), backend))
}

// site is in front of a backend, with one certificate.
func site(cert *tls.Certificate, backend string) *Site {
	return &Site{
		Name:        "test",
		Certificate: func(context.Context) (*tls.Certificate, error) { return cert, nil },
		Dial: func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", backend)
		},
	}
}

func serveSite(t testing.TB, o Options, s *Site) *fixture {
	t.Helper()
	l := listenTCP(t)
	f := &fixture{Proxy: New(o), addr: l.Addr().String(), served: make(chan error, 1)}
	go func() { f.served <- f.Serve(l, s) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		f.Shutdown(ctx)
	})
	return f
}

func (f *fixture) dial(t testing.TB) *tls.Conn {
	t.Helper()
	c, err := f.try(&tls.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (f *fixture) try(config *tls.Config) (*tls.Conn, error) {
	config.InsecureSkipVerify = true
	return tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", f.addr, config)
}

// accept is the app's next connection.
func accept(t testing.TB, l *net.TCPListener) *net.TCPConn {
	t.Helper()
	l.SetDeadline(time.Now().Add(patience))
	c, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

func (p *Proxy) endsOf(r result) uint64 {
	for i, known := range results {
		if known == r {
			return p.metrics.ends[i].Load()
		}
	}
	return 0
}

// awaitEnds waits for all connections and checks how they ended.
func (f *fixture) awaitEnds(t *testing.T, r result, want uint64) {
	t.Helper()
	// A client that left at once may not be accepted yet, and a listener that is
	// closed forgets it.
	for begun := time.Now(); f.metrics.accepted.Load() < want; runtime.Gosched() {
		if time.Since(begun) > patience {
			t.Fatalf("%d connections accepted, want %d", f.metrics.accepted.Load(), want)
		}
	}
	f.drained(t)
	if got := f.endsOf(r); got != want {
		t.Errorf("%d connections ended as %s, want %d", got, r, want)
	}
}

// drained waits, through Shutdown, for all connections.
func (f *fixture) drained(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if cut, err := f.Shutdown(ctx); err != nil {
		t.Fatalf("%d connections were left: %v", cut, err)
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	mathrand.NewChaCha8([32]byte{}).Read(b)
	return b
}

// Each half ends by itself: the client ends its own, then reads an answer that
// the app begins only after it has everything.
func TestHalfCloseBothWays(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			app := listenTCP(t)
			f := serve(t, app.Addr().String(), Options{})
			client, err := f.try(&tls.Config{MaxVersion: version})
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			backend := accept(t, app)
			question, answer := randomBytes(3<<20+17), randomBytes(5<<20+3)
			go func() {
				client.Write(question)
				client.CloseWrite()
			}()
			got, err := io.ReadAll(backend)
			if err != nil || !bytes.Equal(got, question) {
				t.Fatalf("the app read %d bytes (%v), want the %d sent", len(got), err, len(question))
			}
			go func() {
				backend.Write(answer)
				backend.CloseWrite()
			}()
			client.SetDeadline(time.Now().Add(patience))
			got, err = io.ReadAll(client)
			if err != nil || !bytes.Equal(got, answer) {
				t.Fatalf("the client read %d bytes (%v), want the %d sent", len(got), err, len(answer))
			}
			f.awaitEnds(t, completed, 1)
			if c, a := f.metrics.fromClient.Load(), f.metrics.toClient.Load(); c != uint64(len(question)) || a != uint64(len(answer)) {
				t.Errorf("counted %d and %d bytes, want %d and %d", c, a, len(question), len(answer))
			}
		})
	}
}

// The app ends first; the client still sends.
func TestAppEndsItsHalfFirst(t *testing.T) {
	app := listenTCP(t)
	f := serve(t, app.Addr().String(), Options{})
	client := f.dial(t)
	backend := accept(t, app)
	backend.CloseWrite()
	client.SetDeadline(time.Now().Add(patience))
	if n, err := client.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("the client read %d, %v; want the end", n, err)
	}
	client.Write([]byte("still here"))
	client.CloseWrite()
	if got, err := io.ReadAll(backend); err != nil || string(got) != "still here" {
		t.Fatalf("the app read %q, %v", got, err)
	}
	f.awaitEnds(t, completed, 1)
}

// A connection that was cut is not a message that ended: no close_notify, no end.
func TestCutIsNotAnEnd(t *testing.T) {
	app := listenTCP(t)
	f := serve(t, app.Addr().String(), Options{})
	client := f.dial(t)
	backend := accept(t, app)
	client.Write([]byte("half a mes"))
	io.ReadFull(backend, make([]byte, 10))
	client.NetConn().(*net.TCPConn).CloseWrite()
	if _, err := io.ReadAll(backend); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the app's read ended with %v, want a reset", err)
	}
	f.awaitEnds(t, aborted, 1)
}

func TestAppResets(t *testing.T) {
	app := listenTCP(t)
	f := serve(t, app.Addr().String(), Options{})
	client := f.dial(t)
	reset(accept(t, app))
	client.SetDeadline(time.Now().Add(patience))
	if _, err := io.ReadAll(client); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client's read ended with %v, want a reset", err)
	}
	f.awaitEnds(t, aborted, 1)
}

func TestOldVersionsAndCiphersAreRefused(t *testing.T) {
	app := listenTCP(t)
	f := serve(t, app.Addr().String(), Options{})
	for name, config := range map[string]*tls.Config{
		"TLS 1.0": {MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS10},
		"TLS 1.1": {MinVersion: tls.VersionTLS11, MaxVersion: tls.VersionTLS11},
		"CBC":     {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}},
	} {
		c, err := f.try(config)
		if err == nil {
			c.Close()
			t.Errorf("%s: connected", name)
			continue
		}
		if !strings.Contains(err.Error(), "remote error: tls:") {
			t.Errorf("%s: %v, want an alert", name, err)
		}
	}
	f.awaitEnds(t, handshakeFailed, 3)
}

func TestAppNotThereIsAnAlert(t *testing.T) {
	f := serve(t, nobody, Options{})
	_, err := f.try(&tls.Config{})
	if err == nil || !strings.Contains(err.Error(), "internal error") {
		t.Errorf("handshake: %v, want the alert internal_error", err)
	}
	f.awaitEnds(t, backendDown, 1)
}

// What is no TLS, or never becomes it, ends within the handshake's time.
func TestGarbageAndSlowClients(t *testing.T) {
	app := listenTCP(t)
	f := serve(t, app.Addr().String(), Options{HandshakeTimeout: 50 * time.Millisecond})
	for name, sent := range map[string][]byte{
		"nothing":        nil,
		"http":           []byte("GET / HTTP/1.1\r\nHost: web\r\n\r\n"),
		"random":         randomBytes(100_000),
		"one byte":       {22},
		"endless record": append([]byte{22, 3, 1, 0x40, 0}, make([]byte, 100)...),
		"huge hello":     append([]byte{22, 3, 1, 0x40, 0, 1, 0xFF, 0xFF, 0xFF}, make([]byte, 0x4000)...),
	} {
		c, err := net.Dial("tcp", f.addr)
		if err != nil {
			t.Fatal(err)
		}
		c.Write(sent)
		c.SetDeadline(time.Now().Add(patience))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: still open", name)
		}
		c.Close()
	}
	f.drained(t)
	for _, want := range []struct {
		result
		n uint64
	}{{notTLS, 2}, {slowHandshake, 3}, {handshakeFailed, 1}} {
		if got := f.endsOf(want.result); got != want.n {
			t.Errorf("%d connections ended as %s, want %d", got, want.result, want.n)
		}
	}
	app.SetDeadline(time.Now())
	if c, err := app.Accept(); err == nil {
		c.Close()
		t.Error("the app was reached")
	}
}

func TestOneTooMany(t *testing.T) {
	app := listenTCP(t)
	f := serve(t, app.Addr().String(), Options{MaxConnections: 1})
	client := f.dial(t)
	backend := accept(t, app)
	if c, err := f.try(&tls.Config{}); err == nil {
		c.Close()
		t.Error("a second connection was taken")
	}
	client.CloseWrite()
	backend.CloseWrite()
	f.awaitEnds(t, overLimit, 1)
}

func TestSilenceEnds(t *testing.T) {
	app := listenTCP(t)
	tick := make(chan time.Time)
	f := serve(t, app.Addr().String(), Options{Tick: tick})
	client := f.dial(t)
	backend := accept(t, app)
	for range 3 {
		tick <- time.Time{}
	}
	client.Write([]byte("x"))
	io.ReadFull(backend, make([]byte, 1))
	// The next tick sees that something moved, and four more see that nothing did.
	for range 4 {
		tick <- time.Time{}
	}
	tick <- time.Time{} // taken only when the fourth is done with
	if n := f.Open(); n != 1 {
		t.Fatalf("%d connections open after three silent quarters, want 1", n)
	}
	tick <- time.Time{}
	if _, err := io.ReadAll(backend); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the app's read ended with %v, want a reset", err)
	}
	f.awaitEnds(t, idle, 1)
}

func TestDrainWaitsAndThenCuts(t *testing.T) {
	app := listenTCP(t)
	f := serve(t, app.Addr().String(), Options{})
	stays, leaves := f.dial(t), f.dial(t)
	first, second := accept(t, app), accept(t, app)
	ctx, cancel := context.WithCancel(context.Background())
	type outcome struct {
		cut int
		err error
	}
	drained := make(chan outcome, 1)
	go func() {
		cut, err := f.Shutdown(ctx)
		drained <- outcome{cut, err}
	}()
	if err := <-f.served; !errors.Is(err, ErrShutdown) {
		t.Errorf("Serve returned %v", err)
	}
	if c, err := net.Dial("tcp", f.addr); err == nil {
		c.Close()
		t.Error("a draining proxy accepts")
	}
	// Both still work.
	for _, c := range []*tls.Conn{stays, leaves} {
		c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []net.Conn{first, second} {
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	leaves.CloseWrite()
	ended := make(chan net.Conn, 2)
	for _, c := range []*net.TCPConn{first, second} {
		go func() {
			if _, err := io.ReadAll(c); err == nil {
				c.CloseWrite()
			}
			ended <- c
		}()
	}
	<-ended
	if _, err := io.ReadAll(leaves); err != nil {
		t.Errorf("the connection that ended during the drain: %v", err)
	}
	for f.Open() != 1 {
		runtime.Gosched() // its goroutine is at its last lines
	}
	select {
	case o := <-drained:
		t.Fatalf("drained with %+v while a connection was open", o)
	default:
	}
	cancel()
	if o := <-drained; o.cut != 1 || !errors.Is(o.err, context.Canceled) {
		t.Errorf("the drain ended with %+v, want one connection cut", o)
	}
	if _, err := io.ReadAll(stays); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the connection that stayed ended with %v, want a reset", err)
	}
	if got := f.endsOf(drainedLate); got != 1 {
		t.Errorf("%d connections counted as cut by the drain, want 1", got)
	}
}

type fixedFiles struct{}

func (fixedFiles) Reloads() (taken, refused uint64) { return 2, 1 }
func (fixedFiles) NotAfter() time.Time              { return time.Unix(1_900_000_000, 0) }

func TestMetricsPassTheLinter(t *testing.T) {
	// A pedantic registry checks descriptions against what is collected.
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(New(Options{}).Collector(fixedFiles{})); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if len(families) != 8 {
		t.Errorf("%d metrics, want 8", len(families))
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}
