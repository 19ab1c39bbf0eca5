// Package promtest holds a program's metrics page against promtool, Prometheus'
// own judge of names, types and help texts. Tests of the programs call it with
// the address that the ready line names.
package promtest

import (
	"bytes"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"testing"

	"tulle/overlay/netcfg/nstest"
)

// Page fetches http://address/metrics, has promtool check it and returns it. The
// check is a test of its own: where promtool is not installed only that one is
// skipped. (make test installs it as root.)
func Page(t *testing.T, address string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	page, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%s/metrics: %s, %v", address, answer.Status, err)
	}
	t.Run("promtool", func(t *testing.T) {
		promtool, err := exec.LookPath("promtool")
		if err != nil {
			nstest.Skip(t, "needs promtool (Debian: apt-get install prometheus)")
		}
		cmd := exec.CommandContext(t.Context(), promtool, "check", "metrics")
		cmd.Stdin = bytes.NewReader(page)
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("promtool check metrics: %v\n%s", err, out)
		}
	})
	return string(page)
}

// Needs checks that each family is on the page, with samples.
func Needs(t *testing.T, page string, families ...string) {
	t.Helper()
	for _, f := range families {
		if !strings.Contains(page, "\n# TYPE "+f+" ") && !strings.HasPrefix(page, "# TYPE "+f+" ") {
			t.Errorf("no metric %s", f)
		}
	}
}
