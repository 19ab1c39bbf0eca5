package endpoint

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"tulle/overlay/control"
	"tulle/policy"
	"tulle/policy/api"
)

type clock struct{ t time.Duration }

func (c *clock) now() time.Duration { return c.t }

func open(t testing.TB, dir string, c *clock) *Ledger {
	t.Helper()
	l, err := Open(Options{Dir: dir, Now: c.now, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func testLease(subnet string) Lease {
	return Lease{Lease: api.Lease{Cell: "a", Network: netip.MustParsePrefix("10.255.0.0/16"), Subnet: netip.MustParsePrefix(subnet), Generation: 3, Seconds: 60}, BootID: "boot", Expires: time.Minute}
}

func reopen(t *testing.T, l *Ledger, dir string, c *clock) *Ledger {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return open(t, dir, c)
}

func mustAttach(t *testing.T, l *Ledger, id string) Endpoint {
	t.Helper()
	e, err := l.Attach(Endpoint{Container: id, App: api.AppRef{Name: "web"}, Device: "eth0", Lifeline: "none"})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

var addrs = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func TestLedgerSurvives(t *testing.T) {
	dir, c := t.TempDir(), &clock{}
	l := open(t, dir, c)
	if _, err := l.Attach(Endpoint{Container: "early"}); !errors.Is(err, ErrNoLease) {
		t.Errorf("without a lease: %v", err)
	}
	if err := l.SetLease(testLease("10.255.7.0/24")); err != nil {
		t.Fatal(err)
	}
	one, two := mustAttach(t, l, "c1"), mustAttach(t, l, "c2")
	if _, err := l.Attach(Endpoint{Container: "c1"}); !errors.Is(err, ErrExists) {
		t.Errorf("same container twice: %v", err)
	}
	if err := l.SetApp("c2", "guid-2"); err != nil {
		t.Fatal(err)
	}
	two.AppID = "guid-2"
	two.Ports = []control.Port{{HostPort: 8080, Port: 80}, {HostPort: 53, Port: 53, Protocol: "udp", Keep: true}}
	if err := l.SetPorts("c2", two.Ports[:1]); err != nil {
		t.Fatal(err)
	}
	if err := l.SetPorts("c2", two.Ports); err != nil {
		t.Fatal(err)
	}
	if err := l.SetPorts("c9", nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("ports of nobody: %v", err)
	}
	two.Rules = []policy.SecurityRule{{Protocol: "tcp", Destination: "192.0.2.1", Ports: "443", Log: true}}
	if err := l.SetRules("c2", two.Rules); err != nil {
		t.Fatal(err)
	}
	if err := l.SetRules("c9", nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("rules of nobody: %v", err)
	}
	if got, err := l.Detach("c1"); err != nil || got.Address != one.Address {
		t.Errorf("detach: %+v, %v", got, err)
	}
	if _, err := l.Detach("c1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("detach again: %v", err)
	}
	seq, err := l.NextSequence()
	if err != nil {
		t.Fatal(err)
	}

	for range 2 { // once from records, once from a snapshot
		l = reopen(t, l, dir, c)
		if diff := cmp.Diff([]Endpoint{two}, l.List(), addrs); diff != "" {
			t.Errorf("endpoints (-want +got)\n%s", diff)
		}
		lease, ok := l.Lease()
		if want := testLease("10.255.7.0/24"); !ok || lease != want {
			t.Errorf("lease %+v, want %+v", lease, want)
		}
		if inUse, rest, free := l.Addresses(); inUse != 1 || rest != 1 || free != 252 {
			t.Errorf("%d in use, %d rest, %d free", inUse, rest, free)
		}
	}
	if next, err := l.NextSequence(); err != nil || next <= seq {
		t.Errorf("sequence %d after %d, %v", next, seq, err)
	}
	three := mustAttach(t, l, "c3")
	if three.Counter <= two.Counter || three.Address == one.Address {
		t.Errorf("after %+v and %+v came %+v", one, two, three)
	}
}

// A change that makes the journal begin anew is in the new one.
func TestLedgerChangeThatBeginsTheJournalAnew(t *testing.T) {
	dir, c := t.TempDir(), &clock{}
	l := open(t, dir, c)
	if err := l.SetLease(testLease("10.255.7.0/24")); err != nil {
		t.Fatal(err)
	}
	want := mustAttach(t, l, "c1")
	want.Rules = []policy.SecurityRule{{Protocol: "all", Destination: "192.0.2.1"}}
	l.j.records = rewriteAfter - 1 // as if as many had been written
	if err := l.SetRules("c1", want.Rules); err != nil {
		t.Fatal(err)
	}
	if n := l.j.length(); n != 1 {
		t.Fatalf("%d records, the journal did not begin anew", n)
	}
	if diff := cmp.Diff([]Endpoint{want}, reopen(t, l, dir, c).List(), addrs); diff != "" {
		t.Errorf("endpoints (-want +got)\n%s", diff)
	}
}

// full is a file in which there is no room for anything behind what it has.
func full(t *testing.T, content string) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("full", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "full")
	t.Cleanup(func() { _ = f.Close() })
	if _, err = f.WriteString(content); err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_GROW)
	}
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// A detach that a full disk kept out of the journal leaves none that the next daemon
// cannot read, whatever comes when there is room again.
func TestLedgerAfterADetachThatCouldNotBeWritten(t *testing.T) {
	for _, again := range []string{"c1", "another at its address"} {
		t.Run(again, func(t *testing.T) {
			dir, c := t.TempDir(), &clock{}
			l := open(t, dir, c)
			if err := l.SetLease(testLease("10.255.7.0/24")); err != nil {
				t.Fatal(err)
			}
			was, stays := mustAttach(t, l, "c1"), mustAttach(t, l, "c2")
			disk := l.j.f
			l.j.f = full(t, strings.Repeat("x", int(l.j.size)))
			if _, err := l.Detach("c1"); err == nil {
				t.Fatal("a full disk took the record")
			}
			l.j.f = disk
			c.t += MaxRest
			now, err := l.Attach(Endpoint{Container: again, Address: was.Address, Device: "eth0"})
			if err != nil {
				t.Fatal(err)
			}
			if now.Counter <= was.Counter {
				t.Errorf("incarnation %d after %d", now.Counter, was.Counter)
			}
			got := map[string]uint32{}
			for _, e := range reopen(t, l, dir, c).List() {
				got[e.Container] = e.Counter
			}
			if got[again] != now.Counter || got[stays.Container] != stays.Counter {
				t.Errorf("the next daemon has %v", got)
			}
		})
	}
}

// A restart shortens no rest and keeps the queue's order.
func TestLedgerRestOverRestart(t *testing.T) {
	dir, c := t.TempDir(), &clock{t: time.Hour}
	l := open(t, dir, c)
	if err := l.SetLease(testLease("10.255.7.0/29")); err != nil {
		t.Fatal(err)
	}
	var es []Endpoint
	for i := range 6 {
		es = append(es, mustAttach(t, l, fmt.Sprintf("c%d", i)))
	}
	for _, i := range []int{4, 1} {
		if _, err := l.Detach(es[i].Container); err != nil {
			t.Fatal(err)
		}
	}
	l = reopen(t, l, dir, c)
	l = reopen(t, l, dir, c)
	l.Gone([]netip.Addr{es[4].Address, es[1].Address}, 9)
	l.Floor(9)
	if _, err := l.Attach(Endpoint{Container: "x"}); !errors.Is(err, ErrPoolEmpty) {
		t.Errorf("at once: %v", err)
	}
	c.t += MinRest
	if x, y := mustAttach(t, l, "x"), mustAttach(t, l, "y"); x.Address != es[4].Address || y.Address != es[1].Address {
		t.Errorf("got %s then %s, freed were %s then %s", x.Address, y.Address, es[4].Address, es[1].Address)
	}
}

func TestLedgerLeaseChange(t *testing.T) {
	dir, c := t.TempDir(), &clock{}
	l := open(t, dir, c)
	if err := l.SetLease(testLease("10.255.7.0/24")); err != nil {
		t.Fatal(err)
	}
	e := mustAttach(t, l, "c1")
	if err := l.SetLease(testLease("10.255.8.0/24")); !errors.Is(err, ErrInUse) {
		t.Errorf("another subnet under an endpoint: %v", err)
	}
	renewed := testLease("10.255.7.0/24")
	renewed.Expires = time.Hour
	if err := l.SetLease(renewed); err != nil {
		t.Fatal(err)
	}
	if got, _ := l.Get("c1"); !reflect.DeepEqual(got, e) {
		t.Errorf("the renewal changed %+v to %+v", e, got)
	}
	if _, err := l.Detach("c1"); err != nil {
		t.Fatal(err)
	}
	if err := l.SetLease(testLease("10.255.8.0/24")); err != nil {
		t.Fatal(err)
	}
	l = reopen(t, l, dir, c)
	if got := mustAttach(t, l, "c2").Address; got != netip.MustParseAddr("10.255.8.1") {
		t.Errorf("the new lease's first address is %s", got)
	}
}

func TestLedgerTornTailLeavesAGap(t *testing.T) {
	dir, c := t.TempDir(), &clock{}
	l := open(t, dir, c)
	if err := l.SetLease(testLease("10.255.7.0/24")); err != nil {
		t.Fatal(err)
	}
	e := mustAttach(t, l, "c1")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, journalName)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	torn := journalText(t, &record{Attach: &Endpoint{Container: "c2", Counter: e.Counter + 1}})
	if err := os.WriteFile(path, append(b, torn[:len(torn)-3]...), 0o600); err != nil {
		t.Fatal(err)
	}
	l = open(t, dir, c)
	if got := l.List(); len(got) != 1 || !reflect.DeepEqual(got[0], e) {
		t.Errorf("endpoints %+v", got)
	}
	if next := mustAttach(t, l, "c3"); next.Counter <= e.Counter+1 {
		t.Errorf("counter %d may have been used by what was torn off", next.Counter)
	}
}

func TestLedgerRefusesACorruptJournal(t *testing.T) {
	dir, c := t.TempDir(), &clock{}
	if err := os.WriteFile(filepath.Join(dir, journalName), []byte("garbage\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(Options{Dir: dir, Now: c.now, Log: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), "line 1 is corrupt") || !strings.Contains(err.Error(), dir) {
		t.Errorf("got %v, want the file and the line", err)
	}
	for name, rs := range map[string][]*record{
		"no snapshot":       {{Detach: "c1"}},
		"two snapshots":     {{Snapshot: &snapshot{Version: version}}, {Snapshot: &snapshot{Version: version}}},
		"another format":    {{Snapshot: &snapshot{Version: version + 1}}},
		"attach, no lease":  {{Snapshot: &snapshot{Version: version}}, {Attach: &Endpoint{Container: "c"}}},
		"detach of nothing": {{Snapshot: &snapshot{Version: version}}, {Detach: "c"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, journalName), journalText(t, rs...), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(Options{Dir: dir, Now: c.now, Log: slog.New(slog.DiscardHandler)}); err == nil {
				t.Error("opened")
			}
		})
	}
}

func TestLedgerIsForOneDaemon(t *testing.T) {
	dir, c := t.TempDir(), &clock{}
	l := open(t, dir, c)
	if _, err := Open(Options{Dir: dir, Now: c.now, Log: slog.New(slog.DiscardHandler)}); !errors.Is(err, ErrLocked) {
		t.Errorf("got %v, want ErrLocked", err)
	}
	reopen(t, l, dir, c)
}

func TestLedgerBeginsAnew(t *testing.T) {
	dir, c := t.TempDir(), &clock{}
	l := open(t, dir, c)
	if err := l.SetLease(testLease("10.255.0.0/20")); err != nil {
		t.Fatal(err)
	}
	kept := mustAttach(t, l, "kept")
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range rewriteAfter / 12 {
				id := fmt.Sprintf("c%d-%d", w, i)
				if _, err := l.Attach(Endpoint{Container: id}); err != nil {
					t.Error(err)
					return
				}
				if _, err := l.Detach(id); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := l.j.length(); n >= rewriteAfter {
		t.Errorf("the journal has %d records", n)
	}
	counter := l.counter
	l = reopen(t, l, dir, c)
	if got := l.List(); len(got) != 1 || !reflect.DeepEqual(got[0], kept) {
		t.Errorf("endpoints %+v", got)
	}
	if l.counter != counter {
		t.Errorf("counter %d, was %d", l.counter, counter)
	}
}

const childDir = "TULLE_TEST_LEDGER_DIR"

// TestMain is the child of TestKill9 as well: it attaches and detaches for
// ever and says each answer.
func TestMain(m *testing.M) {
	dir := os.Getenv(childDir)
	if dir == "" {
		os.Exit(m.Run())
	}
	c := &clock{}
	l, err := Open(Options{Dir: dir, Now: c.now, Log: slog.New(slog.DiscardHandler)})
	if err == nil {
		err = l.SetLease(testLease("10.255.0.0/20"))
	}
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	var mu sync.Mutex
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Printf(format+"\n", args...)
	}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(os.Getpid()), uint64(w)))
			var mine []string
			for i := 0; ; i++ {
				if len(mine) > 3 && rng.IntN(2) == 0 {
					id := mine[0]
					mine = mine[1:]
					say("detaching %s", id)
					if _, err := l.Detach(id); err == nil {
						say("detached %s", id)
					}
					continue
				}
				id := fmt.Sprintf("p%d-%d-%d", os.Getpid(), w, i)
				if e, err := l.Attach(Endpoint{Container: id}); err == nil {
					say("attached %s %d %s", id, e.Counter, e.Address)
					mine = append(mine, id)
				}
			}
		})
	}
	wg.Wait()
}

// kill -9 at a random moment: what was answered is there, what ended is not,
// and no incarnation is ever given out twice.
func TestKill9(t *testing.T) {
	dir := t.TempDir()
	type state struct {
		counter, addr string
		leaving       bool
	}
	living, counters := map[string]state{}, map[string]string{}
	rng := rand.New(rand.NewPCG(3, 4))
	for range 12 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childDir+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		limit := 1 + rng.IntN(400)
		sc := bufio.NewScanner(out)
		for n := 0; sc.Scan(); n++ {
			if n == limit {
				_ = cmd.Process.Kill()
			}
			f := strings.Fields(sc.Text())
			switch f[0] {
			case "attached":
				if other, used := counters[f[2]]; used {
					t.Fatalf("incarnation %s of %s was %s's", f[2], f[1], other)
				}
				counters[f[2]] = f[1]
				living[f[1]] = state{counter: f[2], addr: f[3]}
			case "detaching":
				s := living[f[1]]
				s.leaving = true
				living[f[1]] = s
			case "detached":
				delete(living, f[1])
			default:
				t.Fatal(sc.Text())
			}
		}
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()

		l := open(t, dir, &clock{})
		journalled := map[string]bool{}
		for _, e := range l.List() {
			journalled[e.Container] = true
			s, ok := living[e.Container]
			if !ok {
				// Written, but the answer was not: its counter is used all the same.
				counters[fmt.Sprint(e.Counter)] = e.Container
				continue
			}
			if fmt.Sprint(e.Counter) != s.counter || e.Address.String() != s.addr {
				t.Errorf("%s is %+v, answered was %+v", e.Container, e, s)
			}
		}
		for id, s := range living {
			if !journalled[id] && !s.leaving {
				t.Errorf("%s was answered and is gone", id)
			}
		}
		for _, e := range l.List() {
			if _, err := l.Detach(e.Container); err != nil {
				t.Error(err)
			}
		}
		clear(living)
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	if len(counters) < 100 {
		t.Errorf("only %d attaches were answered: nothing was tested", len(counters))
	}
}

func BenchmarkAttachDetach(b *testing.B) {
	c := &clock{}
	l := open(b, b.TempDir(), c)
	if err := l.SetLease(testLease("10.255.0.0/20")); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		c.t += MaxRest
		if _, err := l.Attach(Endpoint{Container: "c"}); err != nil {
			b.Fatal(err)
		}
		if _, err := l.Detach("c"); err != nil {
			b.Fatal(err)
		}
	}
}
