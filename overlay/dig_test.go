package overlay

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tulle/overlay/control"
	"tulle/overlay/netcfg/nstest"
	"tulle/policy"
)

// dig is the answer of Debian's dig in the container's namespace.
func (a *app) dig(args ...string) string {
	a.Helper()
	ctx, cancel := context.WithTimeout(a.Context(), patience)
	defer cancel()
	var out strings.Builder
	cmd := exec.CommandContext(ctx, "dig", append([]string{"@169.254.0.2", "+tries=1", "+time=10"}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := a.ns.Do(cmd.Start); err != nil {
		a.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		a.Fatalf("dig %v: %v\n%s", args, err, out.String())
	}
	return out.String()
}

// short is the sorted lines of a short answer.
func (a *app) short(args ...string) []string {
	a.Helper()
	lines := strings.Fields(a.dig(append([]string{"+short"}, args...)...))
	slices.Sort(lines)
	return lines
}

// attachProcess attaches a container that lives by a process, and returns how to
// kill that.
func (c *cell) attachProcess(id string, of policy.AppID, index string) (a *app, kill func()) {
	c.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		c.Fatal(err)
	}
	kill = func() {
		_ = cmd.Process.Kill() // SIGKILL; it may be dead already
		_ = cmd.Wait()
	}
	c.Cleanup(kill)
	fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		c.Fatal(err)
	}
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	defer pidfd.Close()
	r := c.request(id, of, control.LifelinePidfd)
	r.Instance = index
	a = &app{cell: c, id: id, conn: c.client()}
	a.ns, a.tun = newTUN(c.T)
	if a.at, err = a.conn.Attach(c.Context(), r, a.tun, pidfd); err != nil {
		c.Fatalf("attach %s: %v", id, err)
	}
	a.configure()
	return a, kill
}

// What dig says in a container: names, instances, services, addresses, what is
// missing and why; and that the dead are gone within a second, on every cell,
// killed as they were.
func TestDig(t *testing.T) {
	if _, err := exec.LookPath("dig"); err != nil {
		nstest.Skip(t, "needs dig: install Debian's package bind9-dnsutils")
	}
	p := newPlane(t)
	upstream, _ := nameserver(t)
	quiet := func(c *Config) { c.Resolvers = append(c.Resolvers, upstream) }
	one, two := p.cell("one", "127.0.0.1", quiet), p.cell("two", "127.0.0.2", quiet)
	web := one.attach("web-1", "web", control.LifelineConnection)
	near, killNear := one.attachProcess("back-0", "back", "0")
	far, killFar := two.attachProcess("back-1", "back", "1")
	if _, err := p.store.AddDomain(t.Context(), "acme.internal"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.store.AddRoutes(t.Context(), []policy.Route{
		{Name: "back.apps.internal", App: "back"}, {Name: "b.acme.internal", App: "back"},
	}, nil); err != nil {
		t.Fatal(err)
	}
	both := []string{near.addr().String(), far.addr().String()}
	slices.Sort(both)
	eventually(t, "both instances are found", func() bool { return slices.Equal(web.short("back.apps.internal"), both) })

	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"b.acme.internal"}, both},
		{[]string{"0.back.apps.internal"}, []string{near.addr().String()}},
		{[]string{"1.b.acme.internal"}, []string{far.addr().String()}},
		{[]string{"-x", far.addr().String()}, []string{"1.b.acme.internal.", "1.back.apps.internal."}},
		{[]string{"www.example.com"}, []string{"192.0.2.80"}},
	} {
		if got := web.short(c.args...); !slices.Equal(got, c.want) {
			t.Errorf("dig +short %v: %v, want %v", c.args, got, c.want)
		}
	}
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"back.apps.internal"}, []string{"status: NOERROR", "flags: qr aa rd ra", "\t0\tIN\tA\t",
			"EDE: 18 (Prohibited): (no policy lets this app reach it; allow it with: tulle add-network-policy web back --protocol tcp --port 8080)"}},
		{[]string{"back.apps.internal", "AAAA"}, []string{"status: NOERROR", "fd74:756c:6c65::"}},
		{[]string{"_8081._tcp.back.apps.internal", "SRV"}, []string{"SRV\t0 1 8081 0.back.apps.internal.", "SRV\t0 1 8081 1.back.apps.internal."}},
		{[]string{"nobody.apps.internal"}, []string{"status: NXDOMAIN", "apps.internal.\t\t0\tIN\tSOA\t"}},
		{[]string{"back.apps.internal", "MX"}, []string{"status: NOERROR", "ANSWER: 0", "SOA"}},
	} {
		got := web.dig(c.args...)
		for _, want := range c.want {
			if !strings.Contains(got, want) {
				t.Errorf("dig %v does not say %q:\n%s", c.args, want, got)
			}
		}
	}

	// Over TCP, and what does not fit a datagram by way of it.
	if got := web.dig("+tcp", "back.apps.internal"); !strings.Contains(got, "ANSWER: 2") || !strings.Contains(got, "(TCP)") {
		t.Errorf("over TCP:\n%s", got)
	}
	var crowd []policy.Route
	for i := range 100 {
		crowd = append(crowd, policy.Route{Name: "crowd.apps.internal", Address: netip.AddrFrom4([4]byte{10, 250, 254, byte(i + 1)})})
	}
	if _, err := p.store.AddRoutes(t.Context(), crowd, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the crowd is known, cut over UDP", func() bool {
		return strings.Contains(web.dig("+ignore", "crowd.apps.internal"), "flags: qr aa tc")
	})
	if got := web.short("crowd.apps.internal"); len(got) != 100 {
		t.Errorf("%d addresses of 100, by TCP when it was cut: %v", len(got), got)
	}

	// SIGKILL, and the clock runs.
	gone := func(kill func(), who string, left ...string) {
		t.Helper()
		kill()
		begun := time.Now()
		eventually(t, who+" is out of the answers", func() bool { return slices.Equal(web.short("back.apps.internal"), left) })
		t.Logf("%s was out of the answers after %s", who, time.Since(begun))
	}
	gone(killFar, "the instance of the other cell", near.addr().String())
	gone(killNear, "the instance of this cell")
}
