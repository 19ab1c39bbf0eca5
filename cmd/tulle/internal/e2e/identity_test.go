package e2e

import (
	"bytes"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tulle/cmd/internal/demo"
	"tulle/overlay/netcfg/nstest"
	"tulle/policy"
)

// mirror is an app in Perl, which every Debian has: on the port behind TLS it answers
// with the request's header, on 8081 with what whois says, by curl, of its caller.
const mirror = `
use IO::Socket::INET; use IO::Select;
my @l = map { IO::Socket::INET->new(LocalAddr => $_, Listen => 9, ReuseAddr => 1) or die "$_: $!" } ("127.0.0.1:8080", "0.0.0.0:8081");
print "ready\n"; $| = 1;
while (1) {
	for my $l (IO::Select->new(@l)->can_read) {
		my $c = $l->accept or next;
		my $b = "";
		while (my $x = <$c>) { $b .= $x; last if $x eq "\r\n"; }
		if ($l == $l[1]) { my $p = $c->peerhost . ":" . $c->peerport; $b = ` + "`curl -sS 'http://169.254.0.2/v1/whois?peer=$p'`" + `; }
		print $c "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: " . length($b) . "\r\n\r\n" . $b;
		close $c;
	}
}`

// TestWhoCalls: an app in a container is told who calls it, in a header behind TLS,
// whatever the caller says of itself, and by whois on a plain port.
func TestWhoCalls(t *testing.T) {
	needHost(t)
	for _, tool := range []string{"curl", "perl"} {
		if _, err := exec.LookPath(tool); err != nil {
			nstest.Skip(t, "needs "+tool+": apt-get install "+tool)
		}
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
	cell, err := w.StartCell(ctx, "cell", netip.MustParseAddr("127.0.0.1"))
	must(err)
	_, err = w.StartProxy(ctx, cell)
	must(err)
	bin, err := build()
	must(err)
	app := exec.CommandContext(ctx, filepath.Join(bin, "tulle"), "run", "--app", "db", "--space", demo.Space, "--org", demo.Org, "--socket", cell.Socket, "--dir", "/",
		"--tls-identity", "xfcc", "--", "perl", "-e", mirror)
	app.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	app.Cancel = func() error { return app.Process.Signal(syscall.SIGTERM) }
	var complaint bytes.Buffer
	app.Stderr = &complaint
	must(app.Start())
	defer func() { _ = app.Process.Signal(syscall.SIGTERM); _ = app.Wait() }()
	var at netip.Addr
	for deadline := time.Now().Add(time.Minute); !at.IsValid(); time.Sleep(20 * time.Millisecond) {
		s, err := cell.Status(ctx)
		must(err)
		for _, e := range s.Endpoints {
			at = e.Address
		}
		if time.Now().After(deadline) {
			t.Fatalf("the app is not attached: %s", complaint.String())
		}
	}
	inside(t, w, cell, "web", nil, "true") // the server knows its name from then on
	a := api(t, w)
	must(a.Allow(ctx, "web", "db", policy.TCP, policy.PortRange{Start: demo.TLSPort, End: demo.TLSPort}))
	must(a.Allow(ctx, "web", "db", policy.TCP, policy.PortRange{Start: 8081, End: 8081}))
	ask := func(url string, more ...string) string {
		t.Helper()
		said, status := inside(t, w, cell, "web", nil, append([]string{"curl", "-sS", "--max-time", "30", "--retry", "20", "--retry-delay", "1", "--retry-all-errors", url}, more...)...)
		if status != 0 {
			t.Errorf("%s: curl ends with %d: %s", url, status, said)
		}
		return said
	}
	got := ask(fmt.Sprintf("https://%s:%d/", at, demo.TLSPort), "-H", "X-Forwarded-Client-Cert: By=me", "-H", "x_forwarded_client_cert: By=me")
	if n := strings.Count(strings.ToLower(strings.ReplaceAll(got, "_", "-")), "x-forwarded-client-cert:"); n != 1 || strings.Contains(got, "By=me") ||
		!strings.Contains(got, "X-Forwarded-Client-Cert: By=spiffe://") || !strings.Contains(got, `Subject="OU=app:`) || !strings.Contains(got, ",OU=space:") || !strings.Contains(got, ",OU=organization:") {
		t.Errorf("the app was asked:\n%s", got)
	}
	if got := ask(fmt.Sprintf("http://%s:8081/", at)); !strings.Contains(got, `"app_name":"web"`) || !strings.Contains(got, fmt.Sprintf(`"space_name":%q`, demo.Space)) || !strings.Contains(got, fmt.Sprintf(`"org_name":%q`, demo.Org)) {
		t.Errorf("whois in the container: %s", got)
	}
}
