package client_test

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tulle/policy/api"
	"tulle/policy/ca"
	"tulle/policy/client"
	"tulle/policy/hub"
)

// A host that was off for longer than its credential lasts is told so, whatever the
// broken connection looks like, and does not ask for a renewal twice a second.
func TestExpiredCredentialIsNamed(t *testing.T) {
	r := newRig(t, hub.Options{})
	dir := filepath.Join(r.dir, "late")
	cred, err := r.roots.Cells.IssueCell("late", []ca.Space{ca.AnySpace}, -time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.WriteCell(dir, cred, r.roots.Server); err != nil {
		t.Fatal(err)
	}
	read, write := io.Pipe()
	c, err := client.New(client.Options{Server: "https://" + r.addr, Credentials: dir, Log: slog.New(slog.NewTextHandler(write, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want := "the credential in " + dir + " expired on "
	if _, err := c.Lease(t.Context(), api.LeaseRequest{}); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "tulle-celld join") {
		t.Errorf("%v; want %q", err, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.Watch(ctx, func(context.Context, api.Event) error { return nil })
		_ = write.Close()
	}()
	lines := bufio.NewScanner(read)
	for lines.Scan() {
		if line := lines.Text(); strings.Contains(line, "credential not renewed") {
			if !strings.Contains(line, "expired on") || !strings.Contains(line, "retry_in=1m0s") {
				t.Errorf("logged %s", line)
			}
			break
		}
	}
	cancel()
	_, _ = io.Copy(io.Discard, read)
	<-done
}
