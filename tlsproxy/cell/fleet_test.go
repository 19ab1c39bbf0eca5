package cell

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tulle/overlay/control"
	"tulle/overlay/mint"
	"tulle/overlay/netcfg/nstest"
	"tulle/tlsproxy"
)

const patience = 20 * time.Second

// daemon is what a proxy asks of a cell with one container at most.
type daemon struct {
	sockets *mint.Sockets

	mu      sync.Mutex // guards the fields below
	version uint64
	there   bool
	serial  int64         // of the next certificate
	life    time.Duration // of it
	fresh   int           // certificates that were asked for because the one before had expired
	changed chan struct{}
	unknown atomic.Bool
}

func (d *daemon) change(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
	d.version++
	close(d.changed)
	d.changed = make(chan struct{})
}

func (d *daemon) TLSList(ctx context.Context, q control.TLSList) (control.TLSContainers, error) {
	for {
		d.mu.Lock()
		got := control.TLSContainers{Version: d.version, Containers: map[string]uint64{}}
		if d.there {
			got.Containers["c1"] = d.version
		}
		changed := d.changed
		d.mu.Unlock()
		if got.Version != q.Version {
			return got, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return got, nil
		}
	}
}

func (d *daemon) TLSSockets(context.Context, control.TLSSockets) (control.TLSContainer, *mint.Sockets, error) {
	s, err := d.sockets.Duplicate()
	return control.TLSContainer{Container: "c1", Address: netip.MustParseAddr("10.255.7.3"), App: "db"}, s, err
}

func (d *daemon) TLSCaller(context.Context, control.TLSCaller) (control.Caller, error) {
	if d.unknown.Load() {
		return control.Caller{}, control.Errorf(control.CodeNotFound, "nobody")
	}
	return control.Caller{App: "web"}, nil
}

func (d *daemon) TLSCertificate(_ context.Context, q control.TLSCertificate) (control.TLSPair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return control.TLSPair{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if q.Fresh {
		d.fresh++
		d.life = time.Hour
	}
	d.serial++
	end := time.Now().Add(d.life)
	template := &x509.Certificate{SerialNumber: big.NewInt(d.serial), Subject: pkix.Name{CommonName: "c1"}, NotAfter: end}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return control.TLSPair{}, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return control.TLSPair{}, err
	}
	return control.TLSPair{Certificate: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		Key: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})), NotAfter: end, Renew: time.Now().Add(time.Hour)}, nil
}

// A container comes, has its certificate renewed under clients that never stop
// connecting, of whom none is refused, has one that had expired made anew before it
// is shown, is asked about who calls, and goes.
func TestFleetFollowsTheDaemon(t *testing.T) {
	ns := nstest.New(t)
	d := &daemon{version: 1, life: time.Hour, changed: make(chan struct{})}
	var app net.Listener
	if err := ns.Do(func() (err error) {
		if d.sockets, err = mint.Create(control.TLSPort); err != nil {
			return err
		}
		app, err = net.Listen("tcp4", "127.0.0.1:8080")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer d.sockets.Close()
	defer app.Close()
	go func() {
		for {
			c, err := app.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "x")
			c.(*net.TCPConn).CloseWrite()
			go func() { io.Copy(io.Discard, c); c.Close() }()
		}
	}()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := control.Listen(socket, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	server := &control.Server{TLS: d, Authorizer: control.NewAuthorizer(uint32(unix.Getuid()), nil), Log: log}
	wg.Go(func() { server.Serve(ctx, l) })
	proxy := tlsproxy.New(tlsproxy.Options{Log: log})
	fleet := New(Options{Socket: socket, Proxy: proxy, Log: log})
	defer fleet.Close()
	wg.Go(func() {
		fleet.Run(ctx)
		over, stop := context.WithCancel(context.Background())
		stop()
		proxy.Shutdown(over)
	})

	// shake is a client's connection: the serial number that it was shown.
	shake := func() (int64, error) {
		var raw net.Conn
		if err := ns.Do(func() (err error) {
			raw, err = net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", control.TLSPort), patience)
			return err
		}); err != nil {
			return 0, err
		}
		defer raw.Close()
		raw.SetDeadline(time.Now().Add(patience))
		c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true})
		b, err := io.ReadAll(io.LimitReader(c, 1))
		if err != nil || string(b) != "x" {
			return 0, fmt.Errorf("read %q: %w", b, errors.Join(err, io.ErrUnexpectedEOF))
		}
		return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64(), nil
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s did not come", what)
			}
		}
	}
	if _, err := shake(); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("before the container is listed: %v", err)
	}
	d.change(func() { d.there = true })
	until("the container", func() bool { _, err := shake(); return err == nil })

	end := make(chan struct{})
	var shown atomic.Int64
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-end:
					return
				default:
				}
				serial, err := shake()
				if err != nil {
					t.Errorf("refused by a renewal: %v", err)
					return
				}
				shown.Store(max(shown.Load(), serial))
			}
		})
	}
	for i := range int64(10) {
		d.change(func() {})
		until("a renewed certificate", func() bool { return shown.Load() >= i+2 || t.Failed() })
	}
	close(end)
	clients.Wait()

	d.change(func() { d.life = -time.Minute })
	until("a certificate that has expired, and the one after", func() bool {
		_, err := shake()
		d.mu.Lock()
		defer d.mu.Unlock()
		return err == nil && d.fresh > 0
	})
	if taken, refused := fleet.Reloads(); taken < 11 || refused != 0 || fleet.NotAfter().Before(time.Now()) {
		t.Errorf("%d certificates taken, %d refused, the first expires %v", taken, refused, fleet.NotAfter())
	}
	// The daemon saw no proxy for a while, and stopped the port; now it sees one.
	if err := d.sockets.StopListening(); err != nil {
		t.Fatal(err)
	}
	if _, err := shake(); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a port that was stopped: %v", err)
	}
	until("the port again", func() bool {
		d.change(func() {})
		_, err := shake()
		return err == nil
	})
	d.unknown.Store(true)
	if _, err := shake(); err == nil {
		t.Error("a caller that nobody knows was let in")
	}
	d.unknown.Store(false)
	d.change(func() { d.there = false })
	until("the container's end", func() bool { return proxy.Sites() == 0 })

	// The proxy ends while a port is stopped.
	d.change(func() { d.there = true })
	until("the container again", func() bool { _, err := shake(); return err == nil })
	if err := d.sockets.StopListening(); err != nil {
		t.Fatal(err)
	}
	until("that it is seen", func() bool { c := fleet.get("c1"); return c != nil && c.quiet.Load() })
}

// half is a daemon that cannot give out the sockets of one of its two containers.
type half struct {
	*daemon
	again chan struct{} // closed when it is asked what there is beside what it said
	once  sync.Once
}

func (h *half) TLSList(ctx context.Context, q control.TLSList) (control.TLSContainers, error) {
	if q.Version == 1 {
		h.once.Do(func() { close(h.again) })
		<-ctx.Done()
	}
	return control.TLSContainers{Version: 1, Containers: map[string]uint64{"c1": 1, "c2": 1}}, nil
}

func (h *half) TLSSockets(ctx context.Context, q control.TLSSockets) (control.TLSContainer, *mint.Sockets, error) {
	if q.Container == "c2" {
		return control.TLSContainer{}, nil, unix.EMFILE
	}
	return h.daemon.TLSSockets(ctx, q)
}

// What the daemon cannot do for one container is no end of the connection, and nothing
// that the others wait for.
func TestFleetWithoutOneContainersSockets(t *testing.T) {
	ns := nstest.New(t)
	d := &half{daemon: &daemon{life: time.Hour}, again: make(chan struct{})}
	if err := ns.Do(func() (err error) { d.sockets, err = mint.Create(control.TLSPort); return err }); err != nil {
		t.Fatal(err)
	}
	defer d.sockets.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := control.Listen(socket, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	server := &control.Server{TLS: d, Authorizer: control.NewAuthorizer(uint32(unix.Getuid()), nil), Log: log}
	wg.Go(func() { server.Serve(ctx, l) })
	proxy, ready := tlsproxy.New(tlsproxy.Options{Log: log}), make(chan struct{})
	fleet := New(Options{Socket: socket, Proxy: proxy, Log: log, Ready: func() { close(ready) }})
	defer fleet.Close()
	wg.Go(func() {
		fleet.Run(ctx)
		proxy.Shutdown(ctx)
	})
	for what, ch := range map[string]chan struct{}{"that it is ready": ready, "the next question on the same connection": d.again} {
		select {
		case <-ch:
		case <-time.After(patience):
			t.Fatalf("%s did not come", what)
		}
	}
	if fleet.get("c1") == nil || fleet.get("c2") != nil {
		t.Error("the container that can be served is not the one that is")
	}
}

// slow is a daemon whose first certificate is long under way.
type slow struct {
	*daemon
	began, listed, sent chan struct{}
	asked               atomic.Int64
	once                sync.Once
}

func (s *slow) TLSList(ctx context.Context, q control.TLSList) (control.TLSContainers, error) {
	if q.Version == 2 {
		s.once.Do(func() { close(s.listed) })
	}
	return s.daemon.TLSList(ctx, q)
}

func (s *slow) TLSCertificate(ctx context.Context, q control.TLSCertificate) (control.TLSPair, error) {
	got, err := s.daemon.TLSCertificate(ctx, q)
	if s.asked.Add(1) == 1 {
		close(s.began)
		<-s.sent
	}
	return got, err
}

// A certificate that is made anew while the one before is on its way to the proxy is
// fetched as well.
func TestFleetTakesTheNewestCertificate(t *testing.T) {
	ns := nstest.New(t)
	d := &slow{daemon: &daemon{version: 1, there: true, life: time.Hour, changed: make(chan struct{})},
		began: make(chan struct{}), listed: make(chan struct{}), sent: make(chan struct{})}
	if err := ns.Do(func() (err error) { d.sockets, err = mint.Create(control.TLSPort); return err }); err != nil {
		t.Fatal(err)
	}
	defer d.sockets.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	send := sync.OnceFunc(func() { close(d.sent) })
	defer send()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := control.Listen(socket, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	server := &control.Server{TLS: d, Authorizer: control.NewAuthorizer(uint32(unix.Getuid()), nil), Log: log}
	wg.Go(func() { server.Serve(ctx, l) })
	proxy := tlsproxy.New(tlsproxy.Options{Log: log})
	fleet := New(Options{Socket: socket, Proxy: proxy, Log: log})
	defer fleet.Close()
	wg.Go(func() {
		fleet.Run(ctx)
		proxy.Shutdown(ctx)
	})
	wait := func(what string, ch chan struct{}) {
		t.Helper()
		select {
		case <-ch:
		case <-time.After(patience):
			t.Fatalf("%s did not come", what)
		}
	}
	wait("the first question for a certificate", d.began)
	d.change(func() {})
	wait("the question after the change", d.listed)
	send()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if p := fleet.get("c1").pair.Load(); p != nil && p.cert.Leaf.SerialNumber.Int64() == 2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("asked for %d certificates, want the second", d.asked.Load())
		}
	}
}
