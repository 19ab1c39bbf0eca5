package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair is a certificate for name and its key, PEM.
func pair(t *testing.T, name string) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// write replaces a file as a renewer does, by a rename.
func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestReload(t *testing.T) {
	dir := t.TempDir()
	certPath, keyPath := filepath.Join(dir, "instance.crt"), filepath.Join(dir, "instance.key")
	var log bytes.Buffer
	if _, err := Load(certPath, keyPath, slog.New(slog.NewTextHandler(&log, nil))); err == nil {
		t.Fatal("loaded files that are not there")
	}
	cert1, key1 := pair(t, "one")
	cert2, key2 := pair(t, "two")
	write(t, certPath, cert1)
	write(t, keyPath, key1)
	f, err := Load(certPath, keyPath, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	check := func(when, want string, taken, refused uint64) {
		t.Helper()
		for range 2 { // the second look finds nothing new and counts nothing
			if got := f.Certificate().Leaf.Subject.CommonName; got != want {
				t.Errorf("%s: certificate of %q, want %q", when, got, want)
			}
		}
		if gotTaken, gotRefused := f.Reloads(); gotTaken != taken || gotRefused != refused {
			t.Errorf("%s: %d taken, %d refused, want %d and %d", when, gotTaken, gotRefused, taken, refused)
		}
	}
	check("at first", "one", 0, 0)
	write(t, certPath, cert2)
	check("half renewed", "one", 0, 1)
	write(t, keyPath, key2)
	check("renewed", "two", 1, 1)
	write(t, keyPath, []byte("garbage"))
	check("key is garbage", "two", 1, 2)
	if err := os.Remove(certPath); err != nil {
		t.Fatal(err)
	}
	check("certificate is gone", "two", 1, 3)
	write(t, certPath, cert1)
	write(t, keyPath, key1)
	check("mended", "one", 2, 3)
	if n := strings.Count(log.String(), "the old one stays"); n != 3 {
		t.Errorf("%d refusals logged, want 3:\n%s", n, log.String())
	}
}

// A new pair that comes while no descriptor is free is taken when one is, though the
// files change no more.
func TestReloadWithoutDescriptors(t *testing.T) {
	dir := t.TempDir()
	certPath, keyPath := filepath.Join(dir, "instance.crt"), filepath.Join(dir, "instance.key")
	cert1, key1 := pair(t, "one")
	cert2, key2 := pair(t, "two")
	write(t, certPath, cert1)
	write(t, keyPath, key1)
	var log bytes.Buffer
	f, err := Load(certPath, keyPath, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	write(t, certPath, cert2)
	write(t, keyPath, key2)
	var all unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &all); err != nil {
		t.Fatal(err)
	}
	limit := func(to unix.Rlimit) {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &to); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { limit(all) })
	limit(unix.Rlimit{Max: all.Max})
	f.Certificate()
	without := f.Certificate()
	limit(all)
	if got := without.Leaf.Subject.CommonName; got != "one" {
		t.Errorf("without a descriptor: certificate of %q", got)
	}
	if got := f.Certificate().Leaf.Subject.CommonName; got != "two" {
		t.Errorf("then: certificate of %q", got)
	}
	if taken, refused := f.Reloads(); taken != 1 || refused != 1 || strings.Count(log.String(), "the old one stays") != 1 {
		t.Errorf("%d taken, %d refused\n%s", taken, refused, log.String())
	}
}

func TestWhatIsNoCertificateFile(t *testing.T) {
	dir := t.TempDir()
	cert, _ := pair(t, "one")
	certPath := filepath.Join(dir, "crt")
	write(t, certPath, cert)
	huge := filepath.Join(dir, "huge")
	write(t, huge, nil)
	if err := os.Truncate(huge, maxFile+1); err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]string{"directory": dir, "device": "/dev/zero", "too large": huge} {
		if _, err := Load(certPath, key, slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%s: loaded", name)
		}
	}
}
