package main

import (
	"os"
	"strings"
	"testing"
)

// The page for operators shows a configuration, which is loaded as it stands.
func TestEgressPageIsTrue(t *testing.T) {
	page, err := os.ReadFile("../../docs/operations/egress.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(page), "```yaml\n")
	block, _, closed := strings.Cut(rest, "```")
	if !found || !closed {
		t.Fatal("the page has no configuration any more")
	}
	c, err := loadConfig(write(t, complete+block))
	if err != nil {
		t.Fatal(err)
	}
	if e := c.daemon().Egress; len(e.HostServices) != 3 || e.HostServices[1].Addr.String() != "[2001:db8::1]:5432" || e.Limits.Rate != 100 || e.Log == "" || len(e.DenyRunning) != 1 {
		t.Errorf("the page's configuration is read as %+v", e)
	}
}
