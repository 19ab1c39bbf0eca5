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
	var block string
	for rest := string(page); ; {
		_, next, found := strings.Cut(rest, "```yaml\n")
		if !found {
			break
		}
		text, after, _ := strings.Cut(next, "```")
		block, rest = block+text, after
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
	if d.Mode != e.Mode || d.Port != e.Port || d.WireGuard != e.WireGuard || d.Mode != api.ModeWireGuard || d.WireGuard != overlay.DefaultWireGuardPort ||
		d.PostQuantum != overlay.PostQuantumOn || e.PostQuantum != overlay.PostQuantumOff {
		t.Errorf("the page shows %s, %d, %d and %s, the defaults are %s, %d, %d and %s", d.Mode, d.WireGuard, d.Port, d.PostQuantum, e.Mode, e.WireGuard, e.Port, e.PostQuantum)
	}
}
