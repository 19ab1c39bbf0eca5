package wireguard

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestKeyStays(t *testing.T) {
	dir := t.TempDir()
	k, err := LoadKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	again, err := LoadKeys(dir)
	if err != nil || again != k || !k.Other().IsZero() {
		t.Fatalf("another key the second time, two of them, or %v", err)
	}
	info, err := os.Stat(filepath.Join(dir, KeyFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v; want mode 0600", info.Mode(), err)
	}
	onlyTheKeys(t, dir)
	other, err := LoadKeys(t.TempDir())
	if err != nil || other == k || other.Current.Public() == k.Current.Public() {
		t.Errorf("two cells with one key, or %v", err)
	}
}

func onlyTheKeys(t *testing.T, dir string) {
	t.Helper()
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("%v, %v: want the keys alone", names, err)
	}
}

// Every state of a rotation is read as it was written, whatever a crash in the
// midst of the next write left.
func TestKeysOfARotation(t *testing.T) {
	dir := t.TempDir()
	k, err := LoadKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	next, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]Keys{
		"next": {Current: k.Current, Next: next},
		"old":  {Current: next, Old: k.Current},
		"last": {Current: next, Old: k.Current, Alone: true},
		"done": {Current: next},
	} {
		if err := SaveKeys(dir, want); err != nil {
			t.Fatal(err)
		}
		torn := filepath.Join(dir, KeyFile+".new")
		if err := os.WriteFile(torn, []byte("half of"), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := LoadKeys(dir); err != nil || got != want {
			t.Errorf("%s: other keys than written, or %v", name, err)
		}
		if err := SaveKeys(dir, want); err != nil {
			t.Errorf("%s, over what a crash left: %v", name, err)
		}
		onlyTheKeys(t, dir)
		if info, err := os.Stat(filepath.Join(dir, KeyFile)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want mode 0600", name, info.Mode(), err)
		}
	}
}

// What cannot be written leaves what was there.
func TestKeysThatCannotBeWritten(t *testing.T) {
	dir := t.TempDir()
	k, err := LoadKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, KeyFile+".new", "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := SaveKeys(dir, Keys{Current: k.Current, Next: PrivateKey{[32]byte{8}}}); err == nil {
		t.Error("no error")
	}
	if got, err := LoadKeys(dir); err != nil || got != k {
		t.Errorf("other keys than before, or %v", err)
	}
}

func TestKeyFileThatIsNoSecret(t *testing.T) {
	dir := t.TempDir()
	k, err := LoadKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, KeyFile)
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKeys(dir); err == nil || !strings.Contains(err.Error(), "0640") {
		t.Errorf("readable by others: %v", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	good := k.Current.base64()
	for _, bad := range []string{"", "x", base64.StdEncoding.EncodeToString(make([]byte, 31)), base64.StdEncoding.EncodeToString(make([]byte, 32)),
		strings.Repeat("A", 64), good + "\n\n", good + "\nnext", good + "\nnext x", good + "\nthird " + good, good + "\nnext " + good, good + "\n" + good,
		good + "\nold " + PrivateKey{[32]byte{8}}.base64() + "\nnext " + PrivateKey{[32]byte{16}}.base64(), good + strings.Repeat("\n", 300)} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadKeys(dir); err == nil {
			t.Errorf("%q is taken for keys", bad)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != bad {
			t.Errorf("the file was changed: %q, %v", b, err)
		}
	}
}
