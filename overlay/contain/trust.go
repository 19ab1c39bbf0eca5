package contain

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	roots "tulle/overlay/identity" // identity is a name here
)

// ownBundle is where the roots go on a system that has no bundle of its own.
const ownBundle = "/etc/tulle-ca-certificates.crt"

// withTrust adds the system's roots and ours in the place of each of the
// distribution's bundles, so that what verifies by the system's roots verifies
// other containers too.
func (s *setup) withTrust(files []file) ([]file, error) {
	if s.Trust == "" {
		return files, nil
	}
	system, err := roots.SystemRoots()
	if err != nil {
		return nil, fmt.Errorf("the system's roots: %w", err)
	}
	content := string(roots.Bundle(system, s.Trust))
	for _, path := range roots.SystemBundles() {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("the system's roots: %w", err)
		}
		files = append(files, file{path, content})
		if s.bundle == "" {
			s.bundle = path
		}
	}
	if s.bundle == "" {
		s.bundle = ownBundle
		files = append(files, file{ownBundle, content})
	}
	return files, nil
}

// trustEnv names the roots for programs that have bundles of their own: libraries
// over OpenSSL and Go read SSL_CERT_FILE, curl CURL_CA_BUNDLE, Cloud Foundry's
// buildpacks all files in CF_SYSTEM_CERT_PATH. Who has chosen already keeps that.
func trustEnv(env []string, bundle string) []string {
	if bundle == "" {
		return env
	}
	for _, kv := range [][2]string{{"CF_SYSTEM_CERT_PATH", filepath.Dir(bundle)}, {"SSL_CERT_FILE", bundle}, {"CURL_CA_BUNDLE", bundle}} {
		set := false
		for _, e := range env {
			set = set || strings.HasPrefix(e, kv[0]+"=")
		}
		if !set {
			env = append(env, kv[0]+"="+kv[1])
		}
	}
	return env
}
