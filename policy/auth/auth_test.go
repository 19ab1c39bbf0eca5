package auth

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// file is a tokens file of the test's.
type file struct {
	t    *testing.T
	path string
}

func newFile(t *testing.T) *file { return &file{t: t, path: filepath.Join(t.TempDir(), "tokens.yaml")} }

// replace puts a new file into place, as an operator's editor does.
func (f *file) replace(text []byte) {
	f.t.Helper()
	if err := os.WriteFile(f.path+".new", text, 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(f.path+".new", f.path); err != nil {
		f.t.Fatal(err)
	}
}

func (f *file) write(tokens ...Token) {
	f.t.Helper()
	text, err := EncodeTokens(tokens)
	if err != nil {
		f.t.Fatal(err)
	}
	f.replace(text)
}

func quiet() (*slog.Logger, *bytes.Buffer) {
	var b bytes.Buffer
	return slog.New(slog.NewTextHandler(&b, nil)), &b
}

func TestTokens(t *testing.T) {
	admin, adminEntry := NewToken("admin", Admin)
	ci, ciEntry := NewToken("ci", Write)
	dev, devEntry := NewToken("dev", Write)
	devEntry.Spaces = []string{"acme/prod", "22222222-aaaa-4bbb-8ccc-000000000002"}
	f := newFile(t)
	f.write(adminEntry, devEntry, ciEntry)
	log, _ := quiet()
	tokens, err := OpenTokens(f.path, log)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, token string
		want        Identity
		err         error
	}{
		{"the first", admin, Identity{Name: "admin", Scopes: []Scope{Admin}}, nil},
		{"the last", ci, Identity{Name: "ci", Scopes: []Scope{Write}}, nil},
		{"one of spaces", dev, Identity{Name: "dev", Scopes: []Scope{Write}, Spaces: devEntry.Spaces}, nil},
		{"none", "", Identity{}, ErrUnknownToken},
		{"another", admin + "x", Identity{}, ErrUnknownToken},
		{"the sum in place of the token", adminEntry.SHA256, Identity{}, ErrUnknownToken},
	} {
		got, err := tokens.Authenticate(context.Background(), c.token)
		if !errors.Is(err, c.err) {
			t.Errorf("%s: error %v, want %v", c.name, err, c.err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
	if text, err := os.ReadFile(f.path); err != nil || strings.Contains(string(text), admin) {
		t.Errorf("the file holds the token itself, %v:\n%s", err, text)
	}
}

func TestAChangedFileCountsAtOnce(t *testing.T) {
	ctx := context.Background()
	old, oldEntry := NewToken("old", Admin)
	next, nextEntry := NewToken("next", Admin)
	f := newFile(t)
	f.write(oldEntry)
	log, lines := quiet()
	tokens, err := OpenTokens(f.path, log)
	if err != nil {
		t.Fatal(err)
	}
	known := func(step, token string, want bool) {
		t.Helper()
		if _, err := tokens.Authenticate(ctx, token); (err == nil) != want {
			t.Errorf("%s: %v", step, err)
		}
	}
	known("before", old, true)
	f.write(nextEntry)
	known("the revoked token", old, false)
	known("the new token", next, true)
	f.replace([]byte("- name: broken\n"))
	known("a broken file changes nothing", next, true)
	if !strings.Contains(lines.String(), "tokens file is broken") {
		t.Errorf("nobody is told of the broken file:\n%s", lines)
	}
	if err := os.Remove(f.path); err != nil {
		t.Fatal(err)
	}
	known("nor does a file that is gone", next, true)
	known("however often", next, true)
	if n := strings.Count(lines.String(), "cannot be read"); n != 1 {
		t.Errorf("the missing file is told %d times, want once:\n%s", n, lines)
	}
	f.write(oldEntry)
	known("the file is back, with the old token", old, true)
	known("and without the new one", next, false)
}

func TestConcurrentUse(t *testing.T) {
	text, entry := NewToken("a", Write)
	_, other := NewToken("b", Write)
	f := newFile(t)
	f.write(entry)
	log, _ := quiet()
	tokens, err := OpenTokens(f.path, log)
	if err != nil {
		t.Fatal(err)
	}
	var users sync.WaitGroup
	for range 4 {
		users.Go(func() {
			for range 200 {
				if _, err := tokens.Authenticate(context.Background(), text); err != nil {
					t.Errorf("a token that stays in the file is refused: %v", err)
					return
				}
			}
		})
	}
	for range 50 {
		f.write(other, entry)
		f.write(entry)
	}
	users.Wait()
}

func TestParseTokensNamesWhatIsWrong(t *testing.T) {
	sum := strings.Repeat("ab", 32)
	for _, c := range []struct{ name, text, want string }{
		{"unknown key", "- name: a\n  token: x\n", "line 2: field token not found"},
		{"no list", "name: a\n", "cannot unmarshal"},
		{"two documents", "[]\n---\n[]\n", "more than one document"},
		{"no name", "- sha256: " + sum + "\n  scopes: [network.admin]\n", "name must be printable and not empty"},
		{"a name that moves the cursor", "- name: \"a\\e[2J\"\n  sha256: " + sum + "\n  scopes: [network.admin]\n", "name must be printable"},
		{"short sum", "- name: a\n  sha256: abcd\n  scopes: [network.admin]\n", `sha256 "abcd" is not 64 hexadecimal digits`},
		{"no sum", "- name: a\n  scopes: [network.admin]\n", "is not 64 hexadecimal digits"},
		{"no scopes", "- name: a\n  sha256: " + sum + "\n", "scopes must name"},
		{"unknown scope", "- name: a\n  sha256: " + sum + "\n  scopes: [network.admni]\n", `scope "network.admni"`},
		{"spaces of an admin", "- {name: a, sha256: " + sum + ", scopes: [network.admin], spaces: [o/s]}\n", "spaces limit a token of scope network.write"},
		{"no spaces", "- {name: a, sha256: " + sum + ", scopes: [network.write], spaces: []}\n", "one space or more"},
		{"half a space", "- {name: a, sha256: " + sum + ", scopes: [network.write], spaces: [o/]}\n", `space "o/" is neither ORG/SPACE nor`},
		{"any space", "- {name: a, sha256: " + sum + ", scopes: [network.write], spaces: ['*']}\n", `space "*"`},
		{"name twice", "- {name: a, sha256: " + sum + ", scopes: [network.admin]}\n- {name: a, sha256: " + strings.Repeat("cd", 32) + ", scopes: [network.write]}\n", "name stands twice"},
		{"sum twice", "- {name: a, sha256: " + sum + ", scopes: [network.admin]}\n- {name: b, sha256: " + strings.ToUpper(sum) + ", scopes: [network.write]}\n", "sha256 stands twice"},
	} {
		if _, err := ParseTokens([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want it to hold %q", c.name, err, c.want)
		}
	}
	if _, err := OpenTokens(filepath.Join(t.TempDir(), "none"), slog.Default()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	_, err := ParseTokens([]byte("- name: a\n- sha256: x\n"))
	if err == nil || !strings.Contains(err.Error(), "token 1") || !strings.Contains(err.Error(), "token 2") {
		t.Errorf("not all problems are told: %v", err)
	}
}

func TestIdentity(t *testing.T) {
	admin, writer, nobody := Identity{Name: "a", Scopes: []Scope{Admin}}, Identity{Name: "w", Scopes: []Scope{Write}}, Identity{Name: "n"}
	if !admin.IsAdmin() || writer.IsAdmin() || nobody.IsAdmin() {
		t.Error("only the first is an admin")
	}
	for _, c := range []struct {
		who  Identity
		need []Scope
		want string
	}{
		{admin, []Scope{Admin, Write}, ""},
		{writer, []Scope{Admin, Write}, ""},
		{writer, []Scope{Admin}, "provided scopes [network.write] do not include allowed scopes [network.admin]"},
		{nobody, []Scope{Admin, Write}, "provided scopes [] do not include allowed scopes [network.admin network.write]"},
	} {
		got := ""
		if err := c.who.Require(c.need...); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s needs %v: got %q, want %q", c.who.Name, c.need, got, c.want)
		}
	}
	ctx := NewContext(context.Background(), writer)
	if got, ok := FromContext(ctx); !ok || got.Name != "w" {
		t.Errorf("the context holds %v, %v", got, ok)
	}
	if _, ok := FromContext(context.Background()); ok {
		t.Error("an empty context holds an identity")
	}
}

func TestBearer(t *testing.T) {
	for header, want := range map[string]string{
		"Bearer abc": "abc", "bearer abc": "abc", "Bearer bearer abc": "abc", "abc": "abc", "BEARER abc": "BEARER abc",
	} {
		if got, err := Bearer(header); err != nil || got != want {
			t.Errorf("%q: got %q, %v, want %q", header, got, err, want)
		}
	}
	if _, err := Bearer(""); !errors.Is(err, ErrNoHeader) || err.Error() != "missing authorization header" {
		t.Errorf("no header: %v", err)
	}
}

// FuzzParseTokens: an operator's file. What is taken is written and taken again
// as the same.
func FuzzParseTokens(f *testing.F) {
	_, entry := NewToken("a", Admin, Write)
	text, err := EncodeTokens([]Token{entry})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("- name: a\n- &x [*x]\n"))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := ParseTokens(text)
		if err != nil {
			return
		}
		again, err := EncodeTokens(list)
		if err != nil {
			t.Fatal(err)
		}
		back, err := ParseTokens(again)
		if diff := cmp.Diff(list, back); err != nil || len(list)+len(back) > 0 && diff != "" {
			t.Fatalf("%q becomes %q: %v\n%s", text, again, err, diff)
		}
	})
}
