package wireguard

import (
	"bytes"
	"crypto/mlkem"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// Both ends derive one key, and who differs in anything another.
func TestPresharedKeyIsBound(t *testing.T) {
	dk, err := mlkem.GenerateKey768()
	if err != nil {
		t.Fatal(err)
	}
	ek := dk.EncapsulationKey()
	shared, ciphertext := ek.Encapsulate()
	binding := func() Binding {
		return Binding{From: "a", To: "b", FromKey: PublicKey{1}, ToKey: PublicKey{2}, Sequence: 3, EncapsulationKey: ek.Bytes(), Ciphertext: ciphertext}
	}
	one, err := binding().Derive(shared)
	if err != nil {
		t.Fatal(err)
	}
	taken, err := dk.Decapsulate(ciphertext)
	if err != nil {
		t.Fatal(err)
	}
	if other, err := binding().Derive(taken); err != nil || other != one || one == (PresharedKey{}) || bytes.Equal(one[:], shared) {
		t.Errorf("the ends have different keys, none, or the bare secret; %v", err)
	}
	seen := map[PresharedKey]string{one: "the binding itself"}
	for name, change := range map[string]func(*Binding){
		"from":              func(b *Binding) { b.From = "c" },
		"to":                func(b *Binding) { b.To = "c" },
		"names moved":       func(b *Binding) { b.From, b.To = "ab", "" },
		"swapped":           func(b *Binding) { b.From, b.To, b.FromKey, b.ToKey = b.To, b.From, b.ToKey, b.FromKey },
		"from's key":        func(b *Binding) { b.FromKey = PublicKey{9} },
		"to's key":          func(b *Binding) { b.ToKey = PublicKey{9} },
		"sequence":          func(b *Binding) { b.Sequence++ },
		"encapsulation key": func(b *Binding) { b.EncapsulationKey = b.EncapsulationKey[1:] },
		"ciphertext":        func(b *Binding) { b.Ciphertext = b.Ciphertext[1:] },
	} {
		b := binding()
		change(&b)
		k, err := b.Derive(shared)
		if err != nil {
			t.Fatal(err)
		}
		if same, there := seen[k]; there {
			t.Errorf("another %s gives the key of %s", name, same)
		}
		seen[k] = name
	}
}

func TestSecretsStay(t *testing.T) {
	dir := t.TempDir()
	if s, err := LoadSecrets(dir); err != nil || len(s) != 0 {
		t.Fatalf("%v, %v: want none", s, err)
	}
	want := map[string]Secret{"a": {Sequence: 7, KeyID: "id", Keys: []PresharedKey{{1}, {}}, Settled: true}, "b": {Sequence: 1}}
	if err := SaveSecrets(dir, want); err != nil {
		t.Fatal(err)
	}
	if got, err := LoadSecrets(dir); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("others than written, or %v", err)
	}
	path := filepath.Join(dir, SecretsFile)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v; want mode 0600", info.Mode(), err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadSecrets(dir); err == nil || !strings.Contains(err.Error(), "0644") {
		t.Errorf("readable by others: %v", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "x", `{"a":{"keys":["AAAA"]}}`, `{"a":{"keys":7}}`} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := LoadSecrets(dir); err == nil {
			t.Errorf("%q is taken for %v", bad, s)
		}
	}
}
