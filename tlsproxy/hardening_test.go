package tlsproxy

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tulle/overlay/netcfg/nstest"
)

// record is a TLS record of a handshake message's first bytes.
func record(version uint16, length int, body ...byte) []byte {
	return append([]byte{22, byte(version >> 8), byte(version), byte(length >> 8), byte(length)}, body...)
}

// Every cipher suite and version that the library knows, each offered alone, as
// testssl.sh does: what is spoken is TLS 1.3, and 1.2 with ECDHE and an AEAD.
func TestOnlyModernTLS(t *testing.T) {
	app := listenTCP(t)
	go func() { // close everything that comes
		for {
			c, err := app.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	f := serve(t, app.Addr().String(), Options{})
	for _, s := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
		for _, v := range s.SupportedVersions {
			if v == tls.VersionTLS13 {
				continue // its suites cannot be chosen
			}
			c, err := f.try(&tls.Config{MinVersion: v, MaxVersion: v, CipherSuites: []uint16{s.ID}})
			want := v == tls.VersionTLS12 && strings.HasPrefix(s.Name, "TLS_ECDHE_ECDSA") && (strings.Contains(s.Name, "GCM") || strings.Contains(s.Name, "POLY1305"))
			if err == nil {
				c.Close()
			}
			if (err == nil) != want {
				t.Errorf("%s with %s: %v, want it spoken: %t", tls.VersionName(v), s.Name, err, want)
			}
			if err != nil && !strings.Contains(err.Error(), "remote error: tls:") {
				t.Errorf("%s with %s: %v, want an alert", tls.VersionName(v), s.Name, err)
			}
		}
	}
	c, err := f.try(&tls.Config{MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// A client that asks for a second handshake, as TLS 1.2 had it, gets none.
func TestNoRenegotiation(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		nstest.Skip(t, "needs openssl: install Debian's package of that name")
	}
	app := listenTCP(t)
	f := serve(t, app.Addr().String(), Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, openssl, "s_client", "-tls1_2", "-connect", f.addr)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	backend := accept(t, app)
	io.WriteString(in, "hello\n")
	if _, err := io.ReadFull(backend, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	io.WriteString(in, "R\n") // s_client's own command for it
	if b, err := io.ReadAll(backend); err == nil || len(b) > 0 {
		t.Errorf("after the second ClientHello the app read %q, %v; want the connection cut", b, err)
	}
	cmd.Wait()
	if got := f.endsOf(aborted); got != 1 {
		t.Errorf("%d connections cut, want 1: %s", got, out.String())
	}
}

// lines is a log to look at.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) { l.mu.Lock(); defer l.mu.Unlock(); return l.b.Write(b) }
func (l *lines) String() string              { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

// What is refused is counted by its own name and said in the log, once a second
// at most.
func TestRefusalsAreCountedAndLogged(t *testing.T) {
	app := listenTCP(t)
	instances, other := newRoot(t), newRoot(t)
	unknown := errors.New("no connection of that peer is known")
	for _, c := range []struct {
		result
		site   func(*Site)
		client func(addr string) error
		text   string // in the log
	}{
		{notTLS, nil, send([]byte("GET / HTTP/1.1\r\n\r\n")), "first record does not look like a TLS handshake"},
		{slowHandshake, nil, send(nil), "i/o timeout"},
		{slowHandshake, nil, send(record(0x301, 400, 1, 0, 1, 140)), "i/o timeout"},
		{abandoned, nil, func(addr string) error {
			c, err := net.Dial("tcp", addr)
			if err == nil {
				c.Write(record(0x301, 400, 1))
				err = cmp.Or(c.Close(), io.EOF)
			}
			return err
		}, ""},
		{handshakeFailed, nil, send(record(0x301, 0x4fff)), "oversized record"},
		{handshakeFailed, nil, shake(&tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}), "unsupported versions"},
		{backendDown, func(s *Site) {
			s.Dial = func(ctx context.Context) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "tcp", nobody)
			}
		}, shake(&tls.Config{}), "connection refused"},
		{noCertificate, func(s *Site) {
			s.Certificate = func(context.Context) (*tls.Certificate, error) { return nil, errors.New("none yet") }
		}, shake(&tls.Config{}), "none yet"},
		{unknownCaller, func(s *Site) {
			s.Caller = func(context.Context, netip.AddrPort) (Caller, error) { return Caller{}, unknown }
		}, shake(&tls.Config{}), unknown.Error()},
		{clientRefused, requires(instances, "web"), shake(&tls.Config{}), "there is none"},
		{clientRefused, requires(instances, "web"), shake(with(other.issue(t, "web", time.Hour))), "unknown authority"},
		{clientRefused, requires(instances, "web"), shake(with(instances.issue(t, "web", -time.Minute))), "expired"},
		{clientRefused, requires(instances, "web"), shake(with(instances.issue(t, "db", time.Hour))), "app db's, the connection is app web's"},
		{clientRefused, requires(instances, "web"), shake(with(instances.issue(t, "", time.Hour))), "names no app"},
	} {
		t.Run(fmt.Sprintf("%s %s", c.result, c.text), func(t *testing.T) {
			var log lines
			s := site(certificate(t), app.Addr().String())
			if c.site != nil {
				c.site(s)
			}
			f := serveSite(t, Options{HandshakeTimeout: 300 * time.Millisecond, Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))}, s)
			for range 3 {
				if err := c.client(f.addr); err == nil {
					t.Error("the client was let in")
				}
			}
			f.awaitEnds(t, c.result, 3)
			if got := log.String(); strings.Count(got, "result="+string(c.result)) > 2 || !strings.Contains(got, "result="+string(c.result)) || !strings.Contains(got, c.text) {
				t.Errorf("log: %s", got)
			}
		})
	}
}

// The right certificate of the right app gets in, with and without resumption.
func TestClientCertificateOfTheCallersApp(t *testing.T) {
	instances := newRoot(t)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		app := listenTCP(t)
		s := site(certificate(t), app.Addr().String())
		requires(instances, "web")(s)
		var caller atomic.Value
		caller.Store("web")
		s.Caller = func(context.Context, netip.AddrPort) (Caller, error) { return Caller{App: caller.Load().(string)}, nil }
		f := serveSite(t, Options{}, s)
		config := with(instances.issue(t, "web", time.Hour))
		config.MaxVersion, config.ClientSessionCache = version, tls.NewLRUClientSessionCache(1)
		config.ServerName = "web.apps.internal"
		for i := range 2 {
			c, err := f.try(config)
			if err != nil {
				t.Fatal(err)
			}
			backend := accept(t, app)
			backend.Write([]byte("x"))
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			if resumed := c.ConnectionState().DidResume; resumed != (i == 1) {
				t.Errorf("%s, connection %d: resumed %t", tls.VersionName(version), i, resumed)
			}
			c.CloseWrite()
			backend.CloseWrite()
			c.SetDeadline(time.Now().Add(patience))
			if _, err := io.ReadAll(c); err != nil {
				t.Fatal(err)
			}
			c.Close()
		}
		// A session of web's is none for a caller who is db by the cell's word.
		caller.Store("db")
		if err := shake(config)(f.addr); err == nil {
			t.Errorf("%s: a resumed session of another app was let in", tls.VersionName(version))
		}
	}
}

// Clients that never finish hold little, and for no longer than a handshake may
// take.
func TestSlowClientsAreBounded(t *testing.T) {
	app := listenTCP(t)
	f := serve(t, app.Addr().String(), Options{HandshakeTimeout: 2 * time.Second, MaxConnections: 400})
	before := heap()
	var conns []net.Conn
	for range 400 {
		c, err := net.Dial("tcp", f.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		// The longest ClientHello that is taken, less its last byte.
		c.Write(record(0x301, 0x4000, append([]byte{1, 0, 0x3f, 0xfc}, make([]byte, 0x3ffb)...)...))
		conns = append(conns, c)
	}
	for f.metrics.accepted.Load() < 400 {
		runtime.Gosched()
	}
	if grown := heap() - before; grown > 64<<20 {
		t.Errorf("400 clients in the middle of a handshake take %d MiB", grown>>20)
	}
	for _, c := range conns {
		c.SetDeadline(time.Now().Add(2 * patience))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, context.DeadlineExceeded) {
			t.Fatal("a client was held for ever")
		}
	}
	f.awaitEnds(t, slowHandshake, 400)
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// send writes bytes and waits until the far end has enough.
func send(b []byte) func(string) error {
	return func(addr string) error {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return err
		}
		defer c.Close()
		c.Write(b)
		c.SetDeadline(time.Now().Add(patience))
		if _, err = io.Copy(io.Discard, c); err == nil {
			err = io.EOF
		}
		return err
	}
}

// shake does a handshake and reads a byte: with TLS 1.3 a client knows only then
// whether it was let in.
func shake(config *tls.Config) func(string) error {
	return func(addr string) error {
		config := config.Clone()
		config.InsecureSkipVerify = true
		c, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", addr, config)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		_, err = c.Read(make([]byte, 1))
		return err
	}
}

func with(cert tls.Certificate) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{cert}}
}

func requires(r *root, app string) func(*Site) {
	return func(s *Site) {
		s.Clients = func() *x509.CertPool { return r.pool }
		s.Caller = func(context.Context, netip.AddrPort) (Caller, error) { return Caller{App: app}, nil }
	}
}
