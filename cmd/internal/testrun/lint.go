package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

// lint runs every check, not only up to the first that complains.
func lint(ctx context.Context, out io.Writer) error {
	checks := []struct {
		name  string
		quiet bool // any output is a complaint
		args  []string
	}{
		{"gofmt", true, []string{"gofmt", "-l", "cmd", "cni", "overlay", "policy", "tlsproxy"}},
		{"go vet", false, []string{"go", "vet", "./..."}},
		{"staticcheck", false, []string{"go", "tool", "staticcheck", "./..."}},
		// It fails where it would change anything, and talks of downloads where it would not.
		{"go.mod", false, []string{"go", "mod", "tidy", "-diff"}},
		{"layers", false, []string{"go", "test", "-count=1", "-run=^TestLayers", "./cmd"}},
	}
	var failed []error
	for _, c := range checks {
		cmd := exec.CommandContext(ctx, c.args[0], c.args[1:]...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		text, err := cmd.CombinedOutput()
		if err == nil && c.quiet && strings.TrimSpace(string(text)) != "" {
			err = errors.New("would change")
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", c.name, err))
			fmt.Fprintf(out, "FAIL  %s\n%s\n", c.name, text)
			continue
		}
		fmt.Fprintf(out, "ok    %s\n", c.name)
	}
	return errors.Join(failed...)
}
