// Package certs answers with which certificate a handshake is to be answered
// now, from a pair of files that something else renews.
//
// The files are looked at on each handshake, which costs two stats beside a
// signature, so that no watcher can miss a rename. A pair that does not load,
// such as a certificate whose key is still being written, is logged once and
// changes nothing: the last good pair stays, until the files change again, or, where
// they could not be read, until they can.
package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Files is one pair. Its methods may be called from any goroutine.
type Files struct {
	certPath, keyPath string
	log               *slog.Logger

	current          atomic.Pointer[tls.Certificate]
	reloaded, failed atomic.Uint64

	mu    sync.Mutex
	tried [2]fs.FileInfo // guarded by mu: of what current, or the last failure, came from
	again bool           // guarded by mu: tried could not be read, which may pass
}

// Load reads the pair, PEM: the certificate with its chain, and its key. There
// is no Files without a first good pair.
func Load(certPath, keyPath string, log *slog.Logger) (*Files, error) {
	f := &Files{certPath: certPath, keyPath: keyPath, log: log}
	f.tried = f.stat()
	cert, err := f.read()
	if err != nil {
		return nil, err
	}
	f.current.Store(cert)
	return f, nil
}

// Certificate is the newest good pair. Handshakes that arrive while another one
// reads new files get the old pair rather than wait.
func (f *Files) Certificate() *tls.Certificate {
	if f.mu.TryLock() {
		f.refreshLocked()
		f.mu.Unlock()
	}
	return f.current.Load()
}

// NotAfter is when the current certificate expires.
func (f *Files) NotAfter() time.Time { return f.current.Load().Leaf.NotAfter }

// Reloads counts new pairs taken, and pairs refused because they do not load.
func (f *Files) Reloads() (taken, refused uint64) { return f.reloaded.Load(), f.failed.Load() }

func (f *Files) refreshLocked() {
	now := f.stat()
	known := same(f.tried[0], now[0]) && same(f.tried[1], now[1])
	if known && !f.again {
		return
	}
	// Noted before reading: what changes meanwhile is seen next time.
	f.tried = now
	cert, err := f.read()
	// Files that are there and are not read, since no descriptor is free, do not change
	// when one is.
	var unread *fs.PathError
	f.again = errors.As(err, &unread) && !errors.Is(err, fs.ErrNotExist)
	if f.again && known {
		return // as was said
	}
	if err != nil {
		f.failed.Add(1)
		f.log.Warn("new certificate refused, the old one stays", "certificate", f.certPath, "key", f.keyPath,
			"error", err, "expires", f.NotAfter())
		return
	}
	f.current.Store(cert)
	f.reloaded.Add(1)
	f.log.Info("certificate reloaded", "certificate", f.certPath, "subject", cert.Leaf.Subject.String(), "expires", cert.Leaf.NotAfter)
}

func (f *Files) stat() [2]fs.FileInfo {
	var infos [2]fs.FileInfo
	for i, path := range []string{f.certPath, f.keyPath} {
		if info, err := os.Stat(path); err == nil {
			infos[i] = info
		}
	}
	return infos
}

func same(a, b fs.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}

// maxFile bounds what is read as a certificate: a wrong path may be a device.
const maxFile = 1 << 20

func (f *Files) read() (*tls.Certificate, error) {
	cert, err := readFile(f.certPath)
	if err != nil {
		return nil, fmt.Errorf("read the certificate: %w", err)
	}
	key, err := readFile(f.keyPath)
	if err != nil {
		return nil, fmt.Errorf("read the key: %w", err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("certificate %s and key %s: %w", f.certPath, f.keyPath, err)
	}
	if pair.Leaf == nil {
		if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
			return nil, fmt.Errorf("certificate %s: %w", f.certPath, err)
		}
	}
	return &pair, nil
}

var errNoFile = errors.New("not a regular file of at most 1 MiB")

func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, fmt.Errorf("%s: %w", path, errNoFile)
	}
	return os.ReadFile(path)
}
