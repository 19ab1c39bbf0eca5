package overlay

import (
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tulle/overlay/control"
	"tulle/policy"
)

func openFiles(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// Whatever is wrong with an attach, nothing of it stays: no descriptor, no
// address, no endpoint.
func TestAttachRefusals(t *testing.T) {
	p := newPlaneOf(t, 30) // two addresses
	uid := uint32(os.Geteuid())
	one := p.cell("one", "127.0.0.1", func(c *Config) {
		c.Allow = []control.Grant{{UID: uid, Apps: []string{"web", "db"}}}
	})
	one.attach("web-1", "web", control.LifelineNone)
	file, err := os.CreateTemp(t.TempDir(), "no-tun")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	unset, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unset.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	_, good := newTUN(t)
	ask := func(id string, of policy.AppID, l control.Lifeline, resume bool) control.Attach {
		r := one.request(id, of, l)
		r.Resume = resume
		return r
	}
	type refusal struct {
		name       string
		r          control.Attach
		tun, pidfd *os.File
		want       control.Code
	}
	cases := []refusal{
		{"a plain file", ask("x", "web", control.LifelineNone, false), file, nil, control.CodeNotTUN},
		{"a TUN descriptor without a device", ask("x", "web", control.LifelineNone, false), unset, nil, control.CodeNotTUN},
		{"same container twice", ask("web-1", "web", control.LifelineNone, false), good, nil, control.CodeExists},
		{"an app this uid may not attach", ask("x", "secret", control.LifelineNone, false), good, nil, control.CodeNotAllowed},
		{"a lifeline that is no pidfd", ask("x", "web", control.LifelinePidfd, false), good, null, control.CodeBadRequest},
		{"resume of what never was", ask("x", "web", control.LifelineNone, true), good, nil, control.CodeNotFound},
		{"resume as another app", ask("web-1", "db", control.LifelineNone, true), good, nil, control.CodeBadRequest},
	}
	thin := ask("x", "web", control.LifelineNone, false)
	thin.Bandwidth = control.Bandwidth{EgressRate: 1e6, EgressBurst: 8000}
	cases = append(cases, refusal{"a burst that holds no packet", thin, good, nil, control.CodeBadRequest})
	conn := one.client()
	if _, err := conn.List(t.Context()); err != nil {
		t.Fatal(err)
	}
	files := openFiles(t)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := conn.Attach(t.Context(), c.r, c.tun, c.pidfd)
			if codeOf(err) != c.want {
				t.Errorf("got %v, want code %s", err, c.want)
			}
		})
	}
	one.attach("web-2", "web", control.LifelineNone)
	if _, err := conn.Attach(t.Context(), ask("web-3", "web", control.LifelineNone, false), good, nil); codeOf(err) != control.CodePoolEmpty {
		t.Errorf("a third of two addresses: %v", err)
	}
	if err := one.client().Detach(t.Context(), control.Detach{Container: "web-2"}); err != nil {
		t.Fatal(err)
	}
	// A freed address rests.
	if _, err := conn.Attach(t.Context(), ask("web-3", "web", control.LifelineNone, false), good, nil); codeOf(err) != control.CodePoolEmpty {
		t.Errorf("an address that was just freed: %v", err)
	}
	if inUse, rest, free := one.daemon.ledger.Addresses(); inUse != 1 || rest != 1 || free != 0 {
		t.Errorf("%d addresses in use, %d rest, %d free", inUse, rest, free)
	}
	if s := one.status(); len(s.Endpoints) != 1 || s.Endpoints[0].Container != "web-1" {
		t.Errorf("endpoints: %+v", s.Endpoints)
	}
	// The second app's own: its device, its namespace, its two connections.
	eventually(t, "all descriptors are closed", func() bool { return openFiles(t) <= files+2+4 })
}

func TestManyAttachesFewRequests(t *testing.T) {
	p := newPlane(t)
	one := p.cell("one", "127.0.0.1", nil)
	const n = 16
	tuns := make([]*os.File, n)
	clients := make([]*control.Client, n)
	for i := range n {
		_, tuns[i] = newTUN(t)
		clients[i] = one.client()
	}
	before := p.puts.count()
	var wg sync.WaitGroup
	addrs := make([]string, n)
	for i := range n {
		wg.Go(func() {
			at, err := clients[i].Attach(t.Context(), one.request(fmt.Sprintf("c-%d", i), "web", control.LifelineConnection), tuns[i], nil)
			if err != nil {
				t.Error(err)
			}
			addrs[i] = at.Address.String()
		})
	}
	wg.Wait()
	seen := map[string]bool{}
	for _, a := range addrs {
		if seen[a] {
			t.Errorf("%s was given out twice", a)
		}
		seen[a] = true
	}
	if made := p.puts.count() - before; made > n/2 {
		t.Errorf("%d attaches made %d requests", n, made)
	}
}

func TestPidfdLifeline(t *testing.T) {
	p := newPlane(t)
	one := p.cell("one", "127.0.0.1", nil)
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	_, tun := newTUN(t)
	conn := one.client()
	if _, err := conn.Attach(t.Context(), one.request("c", "web", control.LifelinePidfd), tun, pidfd); err != nil {
		t.Fatal(err)
	}
	_ = pidfd.Close()
	_ = tun.Close()
	_ = conn.Close()
	one.shut()
	one.run() // the pidfd was kept as well
	if s := one.status(); len(s.Endpoints) != 1 || s.Endpoints[0].Waiting {
		t.Fatalf("after a restart: %+v", s.Endpoints)
	}
	_ = in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	one.untilStatus("the process's end is the detach", func(s control.Status) bool { return len(s.Endpoints) == 0 })
	eventually(t, "the holder lets go", func() bool { return one.daemon.cfg.Holder.Len() == 0 })
}

// A lost control plane changes nothing about what is known, and allows nothing
// that is not.
func TestNoServer(t *testing.T) {
	p := newPlane(t)
	one := p.cell("one", "127.0.0.1", nil)
	p.allow(tcp("web", "db", 5432))
	web, db := one.attach("web-1", "web", control.LifelineNone), one.attach("db-1", "db", control.LifelineNone)
	db.listen(5432)
	conn := web.reaches(db, 5432)
	p.stop()
	one.untilStatus("the watch is lost", func(s control.Status) bool { return !s.Connected })
	web.echo(conn)
	web.reaches(db, 5432)

	begun := time.Now()
	more := one.attach("web-2", "web", control.LifelineNone)
	if took := time.Since(begun); took > time.Second {
		t.Errorf("an app that is known took %s", took)
	}
	more.reaches(db, 5432)

	_, tun := newTUN(t)
	begun = time.Now()
	_, err := one.client().Attach(t.Context(), one.request("new-1", "new", control.LifelineNone), tun, nil)
	if took := time.Since(begun); codeOf(err) != control.CodeUnreachable || took > 5*time.Second ||
		err.Error() != "policy server unreachable, app not known on this cell" {
		t.Errorf("an app that is not known: %v after %s", err, took)
	}
	if inUse, rest, _ := one.daemon.ledger.Addresses(); inUse != 3 || rest != 0 {
		t.Errorf("%d addresses in use, %d rest", inUse, rest)
	}
	if n := one.daemon.cfg.Holder.Len(); n != 3 {
		t.Errorf("the holder has %d descriptors of 3", n)
	}

	// The server comes back while an attach waits for it.
	attached, conn2 := make(chan error, 1), one.client()
	go func() {
		_, err := conn2.Attach(t.Context(), one.request("new-2", "new", control.LifelineConnection), tun, nil)
		attached <- err
	}()
	p.start()
	if err := <-attached; err != nil {
		t.Errorf("an attach that the server came back to: %v", err)
	}
	if err := one.client().Detach(t.Context(), control.Detach{Container: "new-2"}); err != nil {
		t.Error(err)
	}
	p.stop()

	// A start without a server, from the journal: devices are kept, nothing
	// passes, until the server is back.
	one.shut()
	one.run()
	if s := one.status(); len(s.Endpoints) != 3 || s.Policies != 0 {
		t.Errorf("without a server: %d endpoints, %d policies", len(s.Endpoints), s.Policies)
	}
	if c, err := web.dial(db, 5432, 200*time.Millisecond); err == nil {
		_ = c.Close()
		t.Error("a connection without any table")
	}
	p.start()
	web.reaches(db, 5432)
	more.reaches(db, 5432)
	eventually(t, "what was attached without a server is registered", func() bool {
		es, err := p.store.Endpoints(t.Context())
		return err == nil && len(es.Endpoints) == 3
	})
}
