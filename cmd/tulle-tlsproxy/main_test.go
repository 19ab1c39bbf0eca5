package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tulle/cmd/internal/promtest"
)

const patience = 10 * time.Second

// writePair puts a new certificate for name, and its key, into dir.
func writePair(t *testing.T, dir, name string) (certPath, keyPath string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPath, keyPath = filepath.Join(dir, "instance.crt"), filepath.Join(dir, "instance.key")
	for path, block := range map[string]*pem.Block{certPath: {Type: "CERTIFICATE", Bytes: der}, keyPath: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(path+".new", pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	return certPath, keyPath
}

// start runs the program with arguments and returns its ready line, what stops
// it, and what it returned.
func start(t *testing.T, args ...string) (up ready, stop func(), ended chan error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	out, stdout := io.Pipe()
	cmd := command()
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(t.Output())
	ended = make(chan error, 1)
	go func() {
		err := cmd.ExecuteContext(ctx)
		stdout.CloseWithError(io.EOF)
		ended <- err
		close(ended)
	}()
	t.Cleanup(func() { cancel(); <-ended })
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		t.Fatalf("no ready line: %v, %v", err, <-ended)
	}
	if err := json.Unmarshal(line, &up); err != nil || !up.Ready {
		t.Fatalf("ready line %s: %v", line, err)
	}
	return up, cancel, ended
}

func subject(t *testing.T, address string) string {
	t.Helper()
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", address, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0].Subject.CommonName
}

// The sidecar's life: requests through it, a renewed certificate, metrics, and
// an end that lets a request under way finish.
func TestSidecar(t *testing.T) {
	asked, release := make(chan struct{}, 1), make(chan struct{})
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			asked <- struct{}{}
			<-release
		}
		io.WriteString(w, "hello")
	}))
	defer app.Close()
	dir := t.TempDir()
	certPath, keyPath := writePair(t, dir, "one")
	up, stop, ended := start(t, "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0",
		"--backend", strings.TrimPrefix(app.URL, "http://"), "--certificate", certPath, "--key", keyPath, "--drain", "10s", "--log-level", "warn")

	client := &http.Client{Timeout: patience, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	get := func(path string) (string, error) {
		answer, err := client.Get("https://" + up.Listen + path)
		if err != nil {
			return "", err
		}
		defer answer.Body.Close()
		b, err := io.ReadAll(answer.Body)
		return string(b), err
	}
	if body, err := get("/"); err != nil || body != "hello" {
		t.Fatalf("GET /: %q, %v", body, err)
	}
	if got := subject(t, up.Listen); got != "one" {
		t.Errorf("certificate of %q, want one", got)
	}
	writePair(t, dir, "two")
	if got := subject(t, up.Listen); got != "two" {
		t.Errorf("certificate of %q after the renewal, want two", got)
	}
	metrics := promtest.Page(t, up.Metrics)
	for _, want := range []string{"tulle_tlsproxy_connections_accepted_total 3\n", `tulle_tlsproxy_certificate_reloads_total{result="taken"} 1`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics lack %q:\n%s", want, metrics)
		}
	}

	type result struct {
		body string
		err  error
	}
	slow := make(chan result, 1)
	go func() {
		body, err := get("/slow")
		slow <- result{body, err}
	}()
	<-asked
	stop()
	close(release)
	if r := <-slow; r.err != nil || r.body != "hello" {
		t.Errorf("the request under way: %+v", r)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(patience):
		t.Fatal("it does not end")
	}
}

func TestWrongStart(t *testing.T) {
	certPath, keyPath := writePair(t, t.TempDir(), "one")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	good := []string{"--listen", "127.0.0.1:0", "--metrics", "", "--certificate", certPath, "--key", keyPath}
	for name, row := range map[string]struct {
		args []string
		says string
	}{
		"no certificate": {[]string{"--certificate", "/nonexistent/crt"}, "/nonexistent/crt"},
		"port taken":     {[]string{"--listen", taken.Addr().String()}, "address already in use"},
		"metrics taken":  {[]string{"--metrics", taken.Addr().String()}, "metrics: "},
		"no limit":       {[]string{"--max-connections", "-1"}, "larger than 0"},
		"an argument":    {[]string{"extra"}, "extra"},
		"no backend":     {[]string{"--backend", "nonsense"}, "--backend \"nonsense\": must be host:port"},
		"backend's port": {[]string{"--backend", "127.0.0.1:70000"}, "must be host:port"},
		"no port":        {[]string{"--backend", "127.0.0.1:"}, "must be host:port"},
		"port zero":      {[]string{"--backend", "127.0.0.1:0"}, "must be host:port"},
		"drain":          {[]string{"--drain", "-1s"}, "--drain -1s"},
	} {
		cmd := command()
		cmd.SetArgs(append(good[:len(good):len(good)], row.args...))
		cmd.SetOut(io.Discard)
		cmd.SetErr(io.Discard)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // one that starts is no hang
		err := cmd.ExecuteContext(ctx)
		cancel()
		if err == nil || !strings.Contains(err.Error(), row.says) {
			t.Errorf("%s: %v, want %q in it", name, err, row.says)
		}
	}
}
