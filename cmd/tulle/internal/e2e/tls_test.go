package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tulle/cmd/internal/demo"
	"tulle/overlay/control"
	"tulle/overlay/netcfg/nstest"
	"tulle/policy"
)

// inside runs a command in a container of its own and returns what it said and
// its exit status.
func inside(t *testing.T, w *demo.World, cell *demo.Cell, app string, flags []string, command ...string) (string, int) {
	t.Helper()
	bin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	args := append([]string{"run", "--app", app, "--space", demo.Space, "--org", demo.Org, "--socket", cell.Socket, "--dir", "/"}, flags...)
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "tulle"), append(append(args, "--"), command...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %v", command, err)
	}
	return out.String() + complaint.String(), cmd.ProcessState.ExitCode()
}

// TestTLSOn61443 is the whole way, with Debian's curl and openssl as clients: a
// plain `curl https://…:61443` verifies the certificate with no flag; policies for
// 8080 and 61443 are two; a proxy and a daemon that are killed are replaced
// without a client seeing more than a delay.
func TestTLSOn61443(t *testing.T) {
	needHost(t)
	if _, err := exec.LookPath("curl"); err != nil {
		nstest.Skip(t, "needs curl: apt-get install curl")
	}
	w := newWorld(t)
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := w.StartServer(ctx)
	must(err)
	var cells []*demo.Cell
	var proxies []*demo.Proxy
	for i, underlay := range []string{"127.0.0.1", "127.0.0.2"} {
		c, err := w.StartCell(ctx, fmt.Sprintf("cell-%d", i+1), netip.MustParseAddr(underlay))
		must(err)
		p, err := w.StartProxy(ctx, c)
		must(err)
		cells, proxies = append(cells, c), append(proxies, p)
	}
	db, err := w.StartApp(ctx, cells[1], "db", 0)
	must(err)
	url := "https://" + db.At(demo.TLSPort) + "/"
	curl := []string{"curl", "-sS", "--max-time", "20", "-w", " verify=%{ssl_verify_result} code=%{http_code}", url}

	const refused = 7
	a := api(t, w)
	if said, status := inside(t, w, cells[0], "web", nil, curl...); status != refused {
		t.Errorf("without a policy curl ends with %d: %s", status, said)
	}
	must(a.Allow(ctx, "web", "db", policy.TCP, policy.PortRange{Start: demo.Port, End: demo.Port}))
	if said, status := inside(t, w, cells[0], "web", nil, curl...); status != refused {
		t.Errorf("with a policy for 8080 alone curl ends with %d: %s", status, said)
	}
	must(a.Forbid(ctx, "web", "db", policy.TCP, policy.PortRange{Start: demo.Port, End: demo.Port}))
	must(a.Allow(ctx, "web", "db", policy.TCP, policy.PortRange{Start: demo.TLSPort, End: demo.TLSPort}))
	if said, status := inside(t, w, cells[0], "web", nil, "curl", "-sS", "--max-time", "20", "http://"+db.At(demo.Port)); status != refused {
		t.Errorf("with a policy for 61443 alone, 8080: curl ends with %d: %s", status, said)
	}
	answers := func(when string, cell *demo.Cell) {
		t.Helper()
		said, status := inside(t, w, cell, "web", nil, curl...)
		if status != 0 || !strings.Contains(said, `"db/0"`) || !strings.Contains(said, "verify=0 code=200") {
			t.Errorf("%s, from %s, curl ends with %d: %s", when, cell.Name, status, said)
		}
	}
	answers("at first", cells[0])
	answers("at first", cells[1])
	over6 := "https://[" + policy.Twin(netip.MustParseAddrPort(db.At(demo.TLSPort)).Addr()).String() + "]:61443/"
	for _, cell := range cells {
		said, status := inside(t, w, cell, "web", nil, "curl", "-sS", "-g", "--max-time", "20", "-w", " verify=%{ssl_verify_result} code=%{http_code}", over6)
		if status != 0 || !strings.Contains(said, `"db/0"`) || !strings.Contains(said, "verify=0 code=200") {
			t.Errorf("over IPv6, from %s, curl ends with %d: %s", cell.Name, status, said)
		}
	}
	// What the container sees of the trust, and that the system's own is still in it.
	said, status := inside(t, w, cells[0], "web", nil, "sh", "-c",
		`echo "$SSL_CERT_FILE $CURL_CA_BUNDLE $CF_SYSTEM_CERT_PATH"; grep -c BEGIN "$SSL_CERT_FILE"; touch "$SSL_CERT_FILE" 2>&1`)
	t.Logf("in a container: %s", said)
	if !strings.Contains(said, "/etc/") || status == 0 {
		t.Errorf("trust in the container (status %d): %s", status, said)
	}
	if said, status := inside(t, w, cells[0], "web", nil, "openssl", "s_client", "-brief", "-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0", "-connect", db.At(demo.TLSPort)); status == 0 {
		t.Errorf("TLS 1.1 is spoken: %s", said)
	}

	must(proxies[1].Kill())
	late := make(chan func(), 1)
	go func() {
		said, status := inside(t, w, cells[0], "web", nil, curl...)
		late <- func() {
			if status != 0 || !strings.Contains(said, "verify=0 code=200") {
				t.Errorf("a client that came between two proxies: curl ends with %d: %s", status, said)
			}
		}
	}()
	time.Sleep(300 * time.Millisecond) // so that it most likely waits; served it must be in any case
	proxies[1], err = w.StartProxy(ctx, cells[1])
	must(err)
	(<-late)()
	answers("after the proxy was killed", cells[0])

	must(cells[1].Kill())
	must(cells[1].Restart(ctx))
	for waiting := true; waiting; { // for db's attacher, a while at most
		s, err := cells[1].Status(ctx)
		must(err)
		waiting = slices.ContainsFunc(s.Endpoints, func(e control.Endpoint) bool { return e.Waiting })
		time.Sleep(10 * time.Millisecond)
	}
	answers("after the daemon was killed", cells[0])

	if said, status := inside(t, w, cells[1], "web", []string{"--no-tls"}, "sh", "-c", "echo quiet"); status != 0 {
		t.Errorf("without TLS: %d: %s", status, said)
	}
}
