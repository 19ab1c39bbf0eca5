package main

import (
	"os"
	"strings"
	"testing"

	"tulle/overlay"
	"tulle/policy/api"
)

// The page for operators shows a configuration, which is loaded as it stands, and
// says what the defaults are.
func TestTunnelsPageIsTrue(t *testing.T) {
	page, err := os.ReadFile("../../docs/operations/tunnels.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(page), "```yaml\n")
	block, _, closed := strings.Cut(rest, "```")
	if !found || !closed {
		t.Fatal("the page has no configuration any more")
	}
	shown, err := loadConfig(write(t, complete+block))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := loadConfig(write(t, complete))
	if err != nil {
		t.Fatal(err)
	}
	d, e := shown.daemon(), plain.daemon()
	if d.Mode != e.Mode || d.Port != e.Port || d.WireGuard != e.WireGuard || d.Mode != api.ModeWireGuard || d.WireGuard != overlay.DefaultWireGuardPort {
		t.Errorf("the page shows %s, %d and %d, the defaults are %s, %d and %d", d.Mode, d.WireGuard, d.Port, e.Mode, e.WireGuard, e.Port)
	}
}
