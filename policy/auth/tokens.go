package auth

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"
)

// Token is one entry of the tokens file. The file is a YAML list of them and
// holds no secret: SHA256 is the sum of the token's text, in hexadecimal.
type Token struct {
	Name   string  `yaml:"name"`
	SHA256 string  `yaml:"sha256"`
	Scopes []Scope `yaml:"scopes"`
	// Spaces limit a token of scope network.write to the apps of these spaces, each
	// ORG/SPACE or a space's GUID. Absent: it may name every app.
	Spaces []string `yaml:"spaces,omitempty,flow"`
}

// NewToken makes a token of 32 random bytes and its entry for the file. The
// text is shown once, to whoever will use it; only the entry is stored.
func NewToken(name string, scopes ...Scope) (text string, entry Token) {
	var secret [32]byte
	rand.Read(secret[:])
	text = base64.RawURLEncoding.EncodeToString(secret[:])
	sum := sha256.Sum256([]byte(text))
	return text, Token{Name: name, SHA256: hex.EncodeToString(sum[:]), Scopes: scopes}
}

// EncodeTokens is the file's text for the list.
func EncodeTokens(list []Token) ([]byte, error) {
	return yaml.Marshal(list)
}

// entry is a checked Token.
type entry struct {
	sum      [sha256.Size]byte
	identity Identity
}

// ParseTokens reads the file's text. A key it does not know, a sum or a scope
// that is none, a name or sum that stands twice: each is an error, and all are
// told at once.
func ParseTokens(text []byte) ([]Token, error) {
	list, _, err := parse(text)
	return list, err
}

func parse(text []byte) ([]Token, []entry, error) {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	var list []Token
	if err := dec.Decode(&list); err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, nil, errors.New("there is more than one document")
	}
	var problems []error
	names := make(map[string]bool)
	sums := make(map[[sha256.Size]byte]bool)
	entries := make([]entry, 0, len(list))
	for n, t := range list {
		bad := func(format string, args ...any) {
			problems = append(problems, fmt.Errorf("token %d (%q): %s", n+1, t.Name, fmt.Sprintf(format, args...)))
		}
		e := entry{identity: Identity{Name: t.Name, Scopes: t.Scopes, Spaces: t.Spaces}}
		if t.Name == "" || strings.ContainsFunc(t.Name, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			bad("name must be printable and not empty")
		}
		if names[t.Name] {
			bad("name stands twice")
		}
		names[t.Name] = true
		sum, err := hex.DecodeString(t.SHA256)
		if err != nil || len(sum) != len(e.sum) {
			bad("sha256 %q is not 64 hexadecimal digits", t.SHA256)
			continue
		}
		copy(e.sum[:], sum)
		if sums[e.sum] {
			bad("sha256 stands twice")
		}
		sums[e.sum] = true
		if len(t.Scopes) == 0 {
			bad("scopes must name %s or %s", Admin, Write)
		}
		for _, s := range t.Scopes {
			if s != Admin && s != Write {
				bad("scope %q is neither %s nor %s", s, Admin, Write)
			}
		}
		if t.Spaces != nil && (len(t.Spaces) == 0 || slices.Contains(t.Scopes, Admin)) {
			bad("spaces limit a token of scope %s to one space or more; leave them out for every app", Write)
		}
		for _, s := range t.Spaces {
			if org, space, named := strings.Cut(s, "/"); s == "" || s == "*" || named && (org == "" || space == "" || strings.Contains(space, "/")) {
				bad("space %q is neither ORG/SPACE nor a space's GUID", s)
			}
		}
		entries = append(entries, e)
	}
	if len(problems) > 0 {
		return nil, nil, errors.Join(problems...)
	}
	return list, entries, nil
}

// Tokens is an Authenticator over a tokens file. It notices when the file
// changes: the next request is judged by the new content. A file that is gone or
// broken then changes nothing but a warning, so that a slip of an editor locks
// nobody out; the old entries stand until the file is whole again.
type Tokens struct {
	path string
	log  *slog.Logger

	mu      sync.Mutex // guards what follows
	seen    os.FileInfo
	entries []entry
}

var _ Authenticator = (*Tokens)(nil)

// OpenTokens reads the file; here, unlike later, what is wrong with it is an error.
func OpenTokens(path string, log *slog.Logger) (*Tokens, error) {
	t := &Tokens{path: path, log: log}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read tokens: %w", err)
	}
	if t.entries, err = readTokens(path); err != nil {
		return nil, err
	}
	t.seen = info
	return t, nil
}

func readTokens(path string) ([]entry, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read tokens: %w", err)
	}
	_, entries, err := parse(text)
	if err != nil {
		return nil, fmt.Errorf("read tokens %s: %w", path, err)
	}
	return entries, nil
}

// Authenticate tells whose the token is. It compares sums, every one of them in
// constant time and to the end of the list, so that neither the content nor the
// place of an entry shows in how long it takes.
func (t *Tokens) Authenticate(_ context.Context, token string) (Identity, error) {
	sum := sha256.Sum256([]byte(token))
	entries := t.current()
	found := -1
	for i := range entries {
		eq := subtle.ConstantTimeCompare(sum[:], entries[i].sum[:])
		found = subtle.ConstantTimeSelect(eq, i, found)
	}
	if found < 0 {
		return Identity{}, ErrUnknownToken
	}
	return entries[found].identity, nil
}

// current is the list as the file has it now. The stat is taken before the read,
// so a change in between is seen at the next call.
func (t *Tokens) current() []entry {
	info, err := os.Stat(t.path)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		if t.seen != nil {
			t.log.Warn("tokens file cannot be read, its last content stands", "path", t.path, "error", err)
		}
		t.seen = nil
		return t.entries
	}
	if t.seen != nil && os.SameFile(info, t.seen) && info.ModTime().Equal(t.seen.ModTime()) && info.Size() == t.seen.Size() {
		return t.entries
	}
	t.seen = info
	entries, err := readTokens(t.path)
	if err != nil {
		t.log.Warn("tokens file is broken, its last content stands", "path", t.path, "error", err)
		return t.entries
	}
	t.entries = entries
	t.log.Info("tokens read again", "path", t.path, "tokens", len(entries))
	return t.entries
}
