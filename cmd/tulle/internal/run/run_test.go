package run

import (
	"bytes"
	"errors"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"tulle/overlay/contain"
	"tulle/overlay/control"
	"tulle/policy/api"
)

func TestReference(t *testing.T) {
	for _, row := range []struct {
		app  string
		want api.AppRef
	}{
		{"web", api.AppRef{Name: "web", Space: "dev", Org: "acme"}},
		{"11111111-aaaa-4bbb-8ccc-000000000001", api.AppRef{GUID: "11111111-aaaa-4bbb-8ccc-000000000001"}},
		{"11111111-aaaa-4bbb-8ccc", api.AppRef{Name: "11111111-aaaa-4bbb-8ccc", Space: "dev", Org: "acme"}},
	} {
		if got := reference(row.app, "dev", "acme"); got != row.want {
			t.Errorf("%s: %+v, want %+v", row.app, got, row.want)
		}
	}
}

func TestShowAddress(t *testing.T) {
	a := control.Attached{Address: netip.MustParsePrefix("10.255.7.3/32"), App: "g"}
	for want, asJSON := range map[string]bool{
		"10.255.7.3 g\n": false,
		"{\"address\":\"10.255.7.3\",\"app\":\"g\"}\n": true,
	} {
		var out strings.Builder
		if show(&out, a, asJSON); out.String() != want {
			t.Errorf("got %q, want %q", out.String(), want)
		}
	}
}

func TestLookup(t *testing.T) {
	for _, row := range []struct {
		name string
		uid  uint32
		ok   bool
	}{
		{"", 0, true},
		{"65534", 65534, true},
		{"nobody", 65534, true},
		{"54321", 54321, true}, // in no database
		{"root", 0, false},
		{"0", 0, false},
		{"4294967296", 0, false},
		{"-1", 0, false},
		{"no such user", 0, false},
	} {
		uid, _, err := lookup(row.name)
		if (err == nil) != row.ok || row.ok && uid != row.uid {
			t.Errorf("%q: %d, %v; want %d, ok %v", row.name, uid, err, row.uid, row.ok)
		}
	}
}

// What goes wrong before the command starts has a status that no command of
// the user's is likely to have, and says what.
func TestRefusals(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "celld.sock")
	for name, row := range map[string]struct {
		args []string
		says string
	}{
		"no daemon":    {[]string{"--app", "web", "--socket", missing, "--", "true"}, missing},
		"host's root":  {[]string{"--app", "web", "--user", "root", "--", "true"}, "never runs as the host's root"},
		"unknown user": {[]string{"--app", "web", "--user", "no such user", "--", "true"}, "no such user"},
	} {
		cmd := Command()
		cmd.SilenceUsage, cmd.SilenceErrors = true, true
		cmd.SetArgs(row.args)
		var out bytes.Buffer
		cmd.SetOut(&out)
		cmd.SetErr(&out)
		err := cmd.ExecuteContext(t.Context())
		var own interface{ ExitCode() int }
		if !errors.As(err, &own) || own.ExitCode() != contain.StatusOwn {
			t.Errorf("%s: %v has no status %d", name, err, contain.StatusOwn)
			continue
		}
		if !strings.Contains(err.Error(), row.says) {
			t.Errorf("%s: %q does not say %q", name, err, row.says)
		}
	}
}

func TestCommandLine(t *testing.T) {
	for name, args := range map[string][]string{
		"no app":     {"--", "true"},
		"no command": {"--app", "web"},
	} {
		cmd := Command()
		cmd.SilenceUsage, cmd.SilenceErrors = true, true
		cmd.SetArgs(args)
		if err := cmd.ExecuteContext(t.Context()); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
