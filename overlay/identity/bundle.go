package identity

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// systemBundles are where distributions keep all the roots that they trust, in
// one file.
var systemBundles = []string{
	"/etc/ssl/certs/ca-certificates.crt",                // Debian, Ubuntu, Arch, Alpine
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // Fedora, RHEL
	"/etc/pki/tls/certs/ca-bundle.crt",                  // older RHEL
	"/etc/ssl/ca-bundle.pem",                            // SUSE
	"/etc/ssl/cert.pem",                                 // BSDs, musl
}

// SystemBundles are the paths at which distributions keep their roots.
func SystemBundles() []string { return slices.Clone(systemBundles) }

// SystemRoots is the content of the first bundle that is there; no bundle is no
// error.
func SystemRoots() ([]byte, error) {
	for _, path := range systemBundles {
		b, err := os.ReadFile(path)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return b, err
		}
	}
	return nil, nil
}

// KeepBundle keeps a file with the system's roots and ours, for runtimes that give
// it to containers as a volume, until ctx ends. The file's directory is made.
func (k *Keeper) KeepBundle(ctx context.Context, path string) {
	for {
		trust, changed := k.Trust()
		var again <-chan time.Time
		if trust != "" {
			if err := writeBundle(path, trust); err != nil {
				k.o.Log.Error("bundle of roots for containers", "file", path, "err", err, "retry_in", k.bundleAgain)
				again = time.After(k.bundleAgain)
			}
		}
		select {
		case <-changed:
		case <-again:
		case <-ctx.Done():
			return
		}
	}
}

func writeBundle(path, trust string) error {
	system, err := SystemRoots()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	// Volumes of single files keep the inode that they were started with.
	return WriteFile(path, Bundle(system, trust), 0o644)
}

// Bundle joins two bundles.
func Bundle(system []byte, trust string) []byte {
	b := append([]byte{}, system...)
	if len(b) > 0 && b[len(b)-1] != '\n' {
		b = append(b, '\n')
	}
	return append(b, trust...)
}
