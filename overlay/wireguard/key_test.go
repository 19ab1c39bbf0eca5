package wireguard

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestKeyStays(t *testing.T) {
	dir := t.TempDir()
	k, err := LoadKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	again, err := LoadKey(dir)
	if err != nil || again != k {
		t.Fatalf("another key the second time, or %v", err)
	}
	info, err := os.Stat(filepath.Join(dir, KeyFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v; want mode 0600", info.Mode(), err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("%v, %v: want the key alone", names, err)
	}
	other, err := LoadKey(t.TempDir())
	if err != nil || other == k || other.Public() == k.Public() {
		t.Errorf("two cells with one key, or %v", err)
	}
}

// RFC 7748 section 6.1: Alice's private and public key.
func TestPublicKey(t *testing.T) {
	k := PrivateKey{[32]byte(unhex(t, "77076d0a7318a57d3c16c17251b26645 df4c2f87ebc0992ab177fba51db92c2a"))}
	want := PublicKey(unhex(t, "8520f0098930a754748b7ddcb43ef75a 0dbf3a0d26381af4eba4a98eaa9b4e6a"))
	if got := k.Public(); got != want {
		t.Errorf("%x, want %x", got, want)
	}
}

func TestKeyFileThatIsNoSecret(t *testing.T) {
	dir := t.TempDir()
	if _, err := LoadKey(dir); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, KeyFile)
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKey(dir); err == nil || !strings.Contains(err.Error(), "0640") {
		t.Errorf("readable by others: %v", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "x", base64.StdEncoding.EncodeToString(make([]byte, 31)), strings.Repeat("A", 64)} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadKey(dir); err == nil {
			t.Errorf("%q is taken for a key", bad)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != bad {
			t.Errorf("the file was changed: %q, %v", b, err)
		}
	}
}

func TestPrivateKeyIsNotPrinted(t *testing.T) {
	k, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	secret := fmt.Sprintf("%x", k.scalar[:])
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
		if got := fmt.Sprintf(verb, k); got != "(private key)" || strings.Contains(got, secret) {
			t.Errorf("%s shows %s", verb, got)
		}
	}
}
