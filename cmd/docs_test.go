package cmd

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	testFunc = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w*)\(`)
	conflict = regexp.MustCompile(`(?m)^(?:<<<<<<<|>>>>>>>) .*`)
	codeSpan = regexp.MustCompile("`([^`]+)`")
	testName = regexp.MustCompile(`\b(?:Test|Fuzz|Benchmark)[A-Z]\w*…?`)
	inFolder = regexp.MustCompile(`^((?:cmd|overlay|policy|cni|tlsproxy)[\w/-]*):\s+((?:Test|Fuzz|Benchmark)\w+)`)
	relative = regexp.MustCompile(`\]\(([^)#:\s]+)(?:#[^)]*)?\)`)
)

// TestDocsNameWhatIsThere: a test that a page names as the proof of a sentence is
// one of the project's, in the package that the page says; and a page that another
// leads to is there. No page has the marks of a conflict.
func TestDocsNameWhatIsThere(t *testing.T) {
	const root = ".."
	tests := map[string]map[string]bool{} // where each name is
	var pages []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && strings.HasPrefix(d.Name(), ".") && path != root:
			return filepath.SkipDir
		case strings.HasSuffix(path, ".md"):
			pages = append(pages, path)
		case strings.HasSuffix(path, "_test.go"):
			folder, err := filepath.Rel(root, filepath.Dir(path))
			if err != nil {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, m := range testFunc.FindAllSubmatch(text, -1) {
				name := string(m[1])
				if tests[name] == nil {
					tests[name] = map[string]bool{}
				}
				tests[name][folder] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	begins := func(prefix string) bool {
		for name := range tests {
			if strings.HasPrefix(name, prefix) {
				return true
			}
		}
		return false
	}
	named := 0
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		if m := conflict.Find(text); m != nil {
			t.Errorf("%s has both sides of a conflict: %q", page, m)
		}
		for _, span := range codeSpan.FindAllStringSubmatch(string(text), -1) {
			for _, name := range testName.FindAllString(span[1], -1) {
				named++
				prefix, several := strings.CutSuffix(name, "…")
				if several && !begins(prefix) || !several && tests[name] == nil {
					t.Errorf("%s names %s, which is no test", page, name)
				}
			}
			if m := inFolder.FindStringSubmatch(span[1]); m != nil && !tests[m[2]][m[1]] {
				t.Errorf("%s names %s of %s, where it is not", page, m[2], m[1])
			}
		}
		for _, m := range relative.FindAllStringSubmatch(string(text), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s leads to %s: %v", page, m[1], err)
			}
		}
	}
	if len(pages) < 10 || named < 100 {
		t.Errorf("%d pages that name %d tests: this test looks in the wrong place", len(pages), named)
	}
}
