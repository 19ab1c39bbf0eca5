package overlay

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tulle/overlay/control"
	"tulle/overlay/fib"
	"tulle/overlay/netcfg/nstest"
	"tulle/policy"
)

func needDig(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("dig"); err != nil {
		nstest.Skip(t, "needs dig: install Debian's package bind9-dnsutils")
	}
}

// dig is the answer of Debian's dig in the container's namespace.
func (a *app) dig(args ...string) string {
	a.Helper()
	ctx, cancel := context.WithTimeout(a.Context(), patience)
	defer cancel()
	var out strings.Builder
	if !strings.HasPrefix(args[0], "@") {
		args = append([]string{"@169.254.0.2"}, args...)
	}
	cmd := exec.CommandContext(ctx, "dig", append([]string{"+tries=1", "+time=10"}, args...)...)
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

// digSays checks what dig prints, however it sets its columns.
func (a *app) digSays(args []string, want ...string) {
	a.Helper()
	got := a.dig(args...)
	for _, w := range want {
		if !strings.Contains(strings.Join(strings.Fields(got), " "), w) {
			a.Errorf("dig %v does not say %q:\n%s", args, w, got)
		}
	}
}

// leaves waits until an address is out of the answers that each asker gets for a
// name, and checks that none has it that was asked for later than within after since.
func leaves(t *testing.T, since time.Time, within time.Duration, name string, address netip.Addr, askers ...*app) {
	t.Helper()
	for _, a := range askers {
		eventually(t, fmt.Sprintf("%v is out of the answers to %s", address, a.id), func() bool {
			asked := time.Now()
			there := slices.Contains(a.short(name), address.String())
			if late := asked.Sub(since); there && late > within {
				t.Errorf("%v is still what %s is told of %s after %s", address, a.id, name, late)
			}
			return !there
		})
		t.Logf("%v was out of the answers to %s after %s", address, a.id, time.Since(since))
	}
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
	needDig(t)
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
	const prohibited = "EDE: 18 (Prohibited): (no policy lets this app reach it; allow it with: tulle add-network-policy web back --protocol tcp --port 8080)"
	twin := func(a *app) string { return fib.Twin(a.addr()).String() }
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"back.apps.internal"}, []string{"status: NOERROR", "flags: qr aa rd ra", " 0 IN A " + near.addr().String(), " 0 IN A " + far.addr().String(), prohibited}},
		{[]string{"back.apps.internal", "AAAA"}, []string{"status: NOERROR", " 0 IN AAAA " + twin(near), " 0 IN AAAA " + twin(far), prohibited}},
		{[]string{"1.back.apps.internal", "AAAA"}, []string{"ANSWER: 1", "AAAA " + twin(far)}},
		{[]string{"back.apps.internal", "SRV"}, []string{"SRV 0 1 8080 0.back.apps.internal.", "SRV 0 1 8080 1.back.apps.internal.",
			"0.back.apps.internal. 0 IN A " + near.addr().String(), "1.back.apps.internal. 0 IN AAAA " + twin(far)}},
		{[]string{"_8081._tcp.back.apps.internal", "SRV"}, []string{"SRV 0 1 8081 0.back.apps.internal.", "SRV 0 1 8081 1.back.apps.internal."}},
		{[]string{"-x", near.addr().String()}, []string{" 0 IN PTR 0.back.apps.internal."}},
		{[]string{"-x", twin(far)}, []string{" 0 IN PTR 1.back.apps.internal."}},
		{[]string{"nobody.apps.internal"}, []string{"status: NXDOMAIN", "apps.internal. 0 IN SOA "}},
		{[]string{"2.back.apps.internal"}, []string{"status: NXDOMAIN", "SOA"}},
		{[]string{"-x", network.Addr().String()}, []string{"status: NXDOMAIN", "SOA"}},
		{[]string{"back.apps.internal", "MX"}, []string{"status: NOERROR", "ANSWER: 0", "SOA"}},
		// EDNS: what we take, the DO bit, a version that is not there yet.
		{[]string{"+dnssec", "back.apps.internal"}, []string{"EDNS: version: 0, flags: do; udp: 1232"}},
		{[]string{"+edns=1", "+noednsnegotiation", "back.apps.internal"}, []string{"status: BADVERS"}},
	} {
		web.digSays(c.args, c.want...)
	}
	if got := web.dig("+noedns", "back.apps.internal"); strings.Contains(got, "OPT") || !strings.Contains(got, "ANSWER: 2") {
		t.Errorf("without EDNS:\n%s", got)
	}

	// Over TCP, of both addresses, and what does not fit a datagram by way of it.
	for _, at := range []string{"@169.254.0.2", "@fd00:169:254::2"} {
		if got := web.dig(at, "+tcp", "back.apps.internal"); !strings.Contains(got, "ANSWER: 2") || !strings.Contains(got, "(TCP)") {
			t.Errorf("%s over TCP:\n%s", at, got)
		}
		if got := web.dig(at, "+tcp", "www.example.com"); !strings.Contains(got, "192.0.2.80") || !strings.Contains(got, "(TCP)") {
			t.Errorf("%s over TCP, another's name:\n%s", at, got)
		}
	}
	// Addresses of no cell here, which would say that nobody has them.
	crowded := byte(1)
	for one.status().Lease.Addr().As4()[2] == crowded || two.status().Lease.Addr().As4()[2] == crowded {
		crowded++
	}
	var crowd []policy.Route
	for i := range 100 {
		crowd = append(crowd, policy.Route{Name: "crowd.apps.internal", Address: netip.AddrFrom4([4]byte{10, 250, crowded, byte(i + 1)})})
	}
	if _, err := p.store.AddRoutes(t.Context(), crowd, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the crowd is known, cut over UDP", func() bool {
		return strings.Contains(web.dig("+ignore", "crowd.apps.internal"), "flags: qr aa tc")
	})
	for _, at := range []string{"@169.254.0.2", "@fd00:169:254::2"} {
		got := strings.Fields(web.dig(at, "+short", "crowd.apps.internal"))
		if len(got) != 100 {
			t.Errorf("%s: %d addresses of 100, by TCP when it was cut: %v", at, len(got), got)
		}
	}

	for size, answers := range map[string]int{"+noedns": 29, "+bufsize=512": 29, "+bufsize=4096": 74} { // what fits 512, 512 and 1232 bytes
		web.digSays([]string{size, "+ignore", "crowd.apps.internal"}, "qr aa tc", fmt.Sprintf("ANSWER: %d,", answers))
	}

	// SIGKILL, and the clock runs from when the instance's own cell knows.
	other := two.attach("other-1", "other", control.LifelineConnection)
	gone := func(dead *app, kill func()) {
		t.Helper()
		kill()
		known := time.Now()
		dead.cell.untilStatus(dead.id+" is known to be dead", func(s control.Status) bool {
			known = time.Now()
			return !slices.ContainsFunc(s.Endpoints, func(e control.Endpoint) bool { return e.Container == dead.id })
		})
		leaves(t, known, time.Second, "back.apps.internal", dead.addr(), web, other)
	}
	gone(far, killFar)
	gone(near, killNear)
}
