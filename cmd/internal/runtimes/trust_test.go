package runtimes

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tulle/cmd/internal/demo"
	"tulle/overlay/control"
	"tulle/policy"
)

// getter is a client that verifies by SSL_CERT_FILE, as most programs do: Go's own,
// without the C library, so that it runs in any container. (busybox has no TLS.)
const getter = "get"

const getterSource = `package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

func main() {
	client := http.Client{Timeout: 20 * time.Second}
	answer, err := client.Get(os.Args[1])
	if err == nil {
		_, err = io.Copy(os.Stdout, answer.Body)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
`

func buildGet(t *testing.T, dir string) {
	t.Helper()
	source := filepath.Join(t.TempDir(), "get.go")
	must(t, os.WriteFile(source, []byte(getterSource), 0o600))
	cmd := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(dir, getter), source)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build get.go: %v\n%s", err, out)
	}
}

// trustDir is where a cell keeps the bundle for its containers; it is there when
// this returns.
func trustDir(t *testing.T, cell *demo.Cell) string {
	t.Helper()
	dir := filepath.Join(filepath.Dir(cell.Socket), "state", "trust")
	deadline := time.After(patience)
	for again := time.NewTicker(10 * time.Millisecond); ; {
		if _, err := os.Stat(filepath.Join(dir, "ca-certificates.crt")); err == nil {
			return dir
		}
		select {
		case <-again.C:
		case <-deadline:
			t.Fatalf("%s has no bundle in %s", cell.Name, dir)
		}
	}
}

// trustBlock is the block of the section "Trust" of a page, word for word.
func trustBlock(t *testing.T, page string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "runtimes", page))
	must(t, err)
	_, section, found := strings.Cut(string(b), "\n## Trust\n")
	_, block, opened := strings.Cut(section, "\n```")
	block, _, closed := strings.Cut(block, "\n```")
	_, block, lines := strings.Cut(block, "\n") // what is behind the opening marks
	if !found || !opened || !closed || !lines {
		t.Fatalf("docs/runtimes/%s has no block under Trust", page)
	}
	return block
}

// trustFlags are the flags of the command that a page gives for trust.
func trustFlags(t *testing.T, page string) (flags []string) {
	t.Helper()
	words := strings.Fields(strings.ReplaceAll(trustBlock(t, page), "\\\n", " "))
	for i, word := range words {
		if i > 0 && slices.Contains([]string{"--volume", "--mount", "--env"}, words[i-1]) {
			flags = append(flags, words[i-1], word)
		}
	}
	if len(flags) < 4 {
		t.Fatalf("docs/runtimes/%s gives no volume and no variable: %q", page, words)
	}
	return flags
}

// trustJSON reads a page's block that is JSON.
func trustJSON(t *testing.T, page string, into any) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(trustBlock(t, page)))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		t.Fatalf("docs/runtimes/%s: %v", page, err)
	}
}

// verifies: with what its page says a client verifies a server by its name, and
// without it does not. ask runs a command in the client's container.
func (w *world) verifies(t *testing.T, client, server control.Endpoint, ask func(...string) (string, error)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	a, err := w.demo.Client()
	must(t, err)
	name := policy.Hostname("tls-"+strings.ReplaceAll(server.Address.String(), ".", "-")) + "." + policy.DefaultDomain
	must(t, a.MapRoutes(ctx, policy.Route{Name: name, App: server.App}))
	p := policy.Policy{Source: client.App, Destination: server.App, Protocol: policy.TCP, Ports: policy.PortRange{Start: demo.TLSPort, End: demo.TLSPort}}
	must(t, a.Enforce(ctx, p))
	url := fmt.Sprintf("https://%s:%d/", name, demo.TLSPort)
	// A certificate with the new name is on its way.
	for again := time.NewTicker(50 * time.Millisecond); ; <-again.C {
		out, err := ask(getter, url)
		if err == nil && out == "hello" {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("%s with the page's trust: %q, %v", url, out, err)
		}
	}
	if out, err := ask("sh", "-c", "SSL_CERT_FILE=/nowhere SSL_CERT_DIR=/nowhere "+getter+" "+url); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("%s without trust: %q, %v", url, out, err)
	}
	must(t, a.Revoke(ctx, p))
}
