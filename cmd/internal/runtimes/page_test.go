package runtimes

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// pageFile is a file on a page: its path in backticks and a colon, then its text.
var pageFile = regexp.MustCompile("(?m)^`([^`\n]+)`:\n```[a-z]*\n((?s:.*?)\n)```$")

// files are those of docs/runtimes/NAME, by path, word for word.
func files(t *testing.T, name string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "runtimes", name))
	must(t, err)
	found := map[string]string{}
	for _, m := range pageFile.FindAllStringSubmatch(string(b), -1) {
		found[m[1]] = m[2]
	}
	if len(found) == 0 {
		t.Fatalf("docs/runtimes/%s has no file", name)
	}
	return found
}

// configure writes a page's files on a host, for owner; ~ is the user's home.
func (h *host) configure(page string, owner int) {
	h.t.Helper()
	for path, text := range files(h.t, page) {
		if rest, ok := strings.CutPrefix(path, "~"); ok {
			path = home + rest
		}
		h.write(path, text, owner)
	}
}
