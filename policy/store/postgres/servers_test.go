package postgres_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
	"tulle/policy/store/pgtest"
	"tulle/policy/store/postgres"
)

const patience = 20 * time.Second

func tcp(src, dst policy.AppID, port int) policy.Policy {
	return policy.Policy{Source: src, Destination: dst, Protocol: policy.TCP, Ports: policy.PortRange{Start: uint16(port), End: uint16(port)}}
}

// TestServersStartAtOnce opens an empty database eight times at once.
func TestServersStartAtOnce(t *testing.T) {
	url := pgtest.Shared(t).Database()
	var wg sync.WaitGroup
	epochs := make([]api.Epoch, 8)
	for i := range epochs {
		wg.Go(func() {
			s, err := postgres.Open(t.Context(), url, options())
			if err != nil {
				t.Error(err)
				return
			}
			epochs[i] = s.Epoch()
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if slices.Sort(epochs); epochs[0] == "" || epochs[0] != epochs[7] {
		t.Errorf("epochs %q, want one", epochs)
	}
}

// watcher follows a store by Changed and Changes alone, and complains of a
// revision that does not follow the one before.
type watcher struct {
	store    store.Store
	revision api.Revision
	policies map[api.Policy]bool
}

func watching(s store.Store) *watcher { return &watcher{store: s, policies: map[api.Policy]bool{}} }

// reach follows until the revision is there.
func (w *watcher) reach(ctx context.Context, revision api.Revision) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		changed := w.store.Changed()
		deltas, err := w.store.Changes(ctx, w.revision, 7)
		if err != nil {
			return err
		}
		for _, d := range deltas {
			if d.Revision != w.revision+1 {
				return fmt.Errorf("revision %d follows %d", d.Revision, w.revision)
			}
			w.revision = d.Revision
			for _, p := range d.PoliciesRemoved {
				delete(w.policies, p)
			}
			for _, p := range d.PoliciesAdded {
				if w.policies[p] {
					return fmt.Errorf("revision %d adds %v again", d.Revision, p)
				}
				w.policies[p] = true
			}
		}
		if w.revision >= revision {
			return nil
		}
		if len(deltas) > 0 {
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("at revision %d, waiting for %d: %w", w.revision, revision, ctx.Err())
		}
	}
}

// agree holds what the watcher knows against the database.
func (w *watcher) agree(t *testing.T) {
	t.Helper()
	s, err := w.store.State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stored := map[api.Policy]bool{}
	for _, p := range s.Policies {
		stored[api.FromDomain(p)] = true
	}
	if diff := cmp.Diff(stored, w.policies); diff != "" || s.Revision != w.revision {
		t.Errorf("revision %d stored, %d seen; policies (-stored +seen):\n%s", s.Revision, w.revision, diff)
	}
}

// TestWatchersOfEveryServerMissNothing has writers on three servers at once, a
// watcher on each, and one on a server where nobody writes.
func TestWatchersOfEveryServerMissNothing(t *testing.T) {
	const writers, rounds = 4, 25
	url := pgtest.Shared(t).Database()
	o := options()
	o.History = 1 << 20
	servers := make([]store.Store, 4)
	watchers := make([]*watcher, len(servers))
	for i := range servers {
		servers[i] = open(t, url, o)
		watchers[i] = watching(servers[i])
	}
	var following, writing sync.WaitGroup
	for i, w := range watchers {
		following.Go(func() {
			// Each round of each writer is one revision.
			if err := w.reach(t.Context(), 3*writers*rounds); err != nil {
				t.Errorf("watcher of server %d: %v", i, err)
			}
		})
	}
	for i, s := range servers[:3] {
		for n := range writers {
			writing.Go(func() {
				app := policy.AppID(fmt.Sprintf("app-%d-%d", i, n))
				for round := range rounds {
					var err error
					if round%3 == 2 {
						_, err = s.RemovePolicies(t.Context(), []policy.Policy{tcp(app, "shared", round)})
					} else { // two, of which the next but one removal takes one
						_, err = s.AddPolicies(t.Context(), []policy.Policy{tcp(app, "shared", round+1), tcp(app, "shared", round+100)})
					}
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	writing.Wait()
	following.Wait()
	for _, w := range watchers {
		w.agree(t)
	}
}

// TestLostConnections ends every connection again and again under writes: what
// was answered is stored, once, and every watcher comes to it.
func TestLostConnections(t *testing.T) {
	cluster := pgtest.Shared(t)
	url := cluster.Database()
	a, b := open(t, url, options()), open(t, url, options())
	answered := 0
	for round := range 5 {
		cluster.Cut(url)
		for n := range 10 {
			// The connection may be cut while the commit is under way: then the
			// answer is an error, and the policy may be there or not.
			_, err := a.AddPolicies(t.Context(), []policy.Policy{tcp("a", "b", 1+10*round+n)})
			if err != nil {
				t.Logf("round %d: %v", round, err)
				continue
			}
			answered++
		}
	}
	if answered != 50 {
		t.Errorf("%d of 50 writes were answered; none was under way while connections were cut", answered)
	}
	s, err := a.State(t.Context())
	if err != nil || len(s.Policies) != answered {
		t.Fatalf("%d policies, %v; answered were %d", len(s.Policies), err, answered)
	}
	w := watching(b)
	if err := w.reach(t.Context(), s.Revision); err != nil {
		t.Fatal(err)
	}
	// b listens again, or will, and then looks.
	cluster.Cut(url)
	revision, err := a.AddPolicies(t.Context(), []policy.Policy{tcp("c", "d", 1)})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.reach(t.Context(), revision); err != nil {
		t.Error(err)
	}
	w.agree(t)
}

// TestCommitThatArrivesLate loses a connection between a COMMIT and its answer: the
// write ends with an error, and whoever watches this server comes to it all the same,
// also when the database gets the COMMIT only later.
func TestCommitThatArrivesLate(t *testing.T) {
	line := newLine(t, pgtest.Shared(t).Database())
	s := open(t, line.url, options())
	w := watching(s)
	before := s.Changed()
	line.cut.Store(true)
	if revision, err := s.AddPolicies(t.Context(), []policy.Policy{tcp("a", "b", 1)}); err == nil {
		t.Fatalf("answered with revision %d, though its COMMIT has not arrived", revision)
	}
	select {
	case <-before: // it may have been stored
	default:
		t.Error("nobody looks whether it was stored")
	}
	changed := s.Changed()
	if deltas, err := s.Changes(t.Context(), 0, 1); err != nil || len(deltas) != 0 {
		t.Fatalf("%v, %v: the COMMIT has arrived", deltas, err)
	}
	line.arrive()
	select {
	case <-changed:
	case <-time.After(patience):
		t.Fatal("nobody is told of what was stored")
	}
	if err := w.reach(t.Context(), 1); err != nil {
		t.Error(err)
	}
	w.agree(t)
}

// line is a way to the database on which a COMMIT can be held up.
type line struct {
	url    string
	cut    atomic.Bool   // the next COMMIT's client loses its connection
	arrive func()        // has that COMMIT arrive
	gone   chan struct{} // closed by arrive
}

const socketName = ".s.PGSQL.5432"

func newLine(t *testing.T, database string) *line {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	dir, far := t.TempDir(), q.Get("host")
	q.Set("host", dir)
	u.RawQuery = q.Encode()
	at, err := net.Listen("unix", filepath.Join(dir, socketName))
	if err != nil {
		t.Fatal(err)
	}
	l := &line{url: u.String(), gone: make(chan struct{})}
	l.arrive = sync.OnceFunc(func() { close(l.gone) })
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			near, err := at.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { l.pass(near, filepath.Join(far, socketName)) })
		}
	})
	t.Cleanup(func() {
		at.Close()
		l.arrive()
		wg.Wait()
	})
	return l
}

func (l *line) pass(near net.Conn, far string) {
	defer near.Close()
	database, err := net.Dial("unix", far)
	if err != nil {
		return
	}
	defer database.Close()
	go func() {
		defer near.Close()
		_, _ = io.Copy(near, database) // one of them is gone
	}()
	buffer := make([]byte, 64<<10)
	for {
		n, err := near.Read(buffer)
		if bytes.Contains(buffer[:n], []byte("commit\x00")) && l.cut.CompareAndSwap(true, false) {
			near.Close()
			<-l.gone
		}
		if _, e := database.Write(buffer[:n]); err != nil || e != nil {
			return
		}
	}
}

// TestDatabaseAway crashes the database and starts it again: in between writes
// and reads fail soon, after that all goes on by itself.
func TestDatabaseAway(t *testing.T) {
	cluster := pgtest.Start(t)
	url := cluster.Database()
	a, b := open(t, url, options()), open(t, url, options())
	if _, err := a.AddPolicies(t.Context(), []policy.Policy{tcp("a", "b", 1)}); err != nil {
		t.Fatal(err)
	}
	w := watching(b)
	if err := w.reach(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	cluster.Stop()
	begin := time.Now()
	if _, err := a.AddPolicies(t.Context(), []policy.Policy{tcp("a", "b", 2)}); err == nil {
		t.Error("a write was answered without a database")
	}
	if err := b.Ping(t.Context()); err == nil {
		t.Error("a read was answered without a database")
	}
	if took := time.Since(begin); took > patience/2 {
		t.Errorf("two errors took %s", took)
	}
	changed := b.Changed()
	cluster.Restart()
	<-changed // b listens again and says so, since it may have missed something
	revision, err := a.AddPolicies(t.Context(), []policy.Policy{tcp("a", "b", 3)})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.reach(t.Context(), revision); err != nil {
		t.Error(err)
	}
	w.agree(t)
}

// TestFrozenServer stops a server in the middle of its write, where it holds the
// row that every write needs: the others wait for a while, not for ever, and
// the one that comes back writes after them.
func TestFrozenServer(t *testing.T) {
	url := pgtest.Shared(t).Database()
	frozen := make(chan struct{})
	thawed := make(chan struct{})
	once := sync.Once{}
	o := options()
	o.Now = func() time.Time {
		once.Do(func() {
			close(frozen)
			<-thawed
		})
		return time.Now()
	}
	a := open(t, url+"&idle_in_transaction_session_timeout=200ms", o)
	b := open(t, url, options())
	late := make(chan error, 1)
	go func() {
		_, err := a.AddPolicies(t.Context(), []policy.Policy{tcp("a", "b", 1)})
		late <- err
	}()
	<-frozen
	revision, err := b.AddPolicies(t.Context(), []policy.Policy{tcp("a", "b", 2)})
	if err != nil || revision != 1 {
		t.Errorf("beside a frozen server: revision %d, %v; want 1", revision, err)
	}
	close(thawed)
	if err := <-late; err != nil {
		t.Errorf("the server that came back: %v", err)
	}
	ps, err := b.Policies(t.Context(), store.Filter{})
	if want := []policy.Policy{tcp("a", "b", 1), tcp("a", "b", 2)}; err != nil || !slices.Equal(ps, want) {
		t.Errorf("policies %v, %v; want %v", ps, err, want)
	}
}

// TestKilledServers kills one server after the other in the middle of their
// writes, while another one writes too: every write that was answered is there,
// whole and once.
func TestKilledServers(t *testing.T) {
	if url := os.Getenv("TULLE_KILLED"); url != "" {
		writeForEver(url)
	}
	const rounds = 4
	url := pgtest.Shared(t).Database()
	o := options()
	o.History = 1 << 20
	s := open(t, url, o)
	var answered []policy.Policy
	mine := 0
	for round := range rounds {
		name := fmt.Sprint("child-", round)
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledServers$")
		cmd.Env = append(os.Environ(), "TULLE_KILLED="+url, "TULLE_NAME="+name)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewReader(out)
		said := func() (n int, err error) {
			_, err = fmt.Fscanf(lines, "%d\n", &n)
			return n, err
		}
		last := 0
		for last < 20 {
			if last, err = said(); err != nil {
				t.Fatal(err)
			}
			mine++
			if _, err := s.AddPolicies(t.Context(), []policy.Policy{tcp("test", "b", mine)}); err != nil {
				t.Fatal(err)
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for err == nil { // what it said before it died
			n := 0
			if n, err = said(); err == nil {
				last = n
			}
		}
		if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatal(err)
		}
		_ = cmd.Wait() // killed
		for n := range last {
			answered = append(answered, tcp(policy.AppID(name), "b", n+1))
		}
	}
	for n := range mine {
		answered = append(answered, tcp("test", "b", n+1))
	}
	state, err := s.State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stored := map[policy.Policy]bool{}
	for _, p := range state.Policies {
		stored[p] = true
	}
	for _, p := range answered {
		if !stored[p] {
			t.Errorf("%v was answered and is not there", p)
		}
	}
	// A server may die between its commit and its answer: one more of each.
	if extra := len(stored) - len(answered); extra < 0 || extra > rounds {
		t.Errorf("%d policies stored, %d answered", len(stored), len(answered))
	}
	if int(state.Revision) != len(stored) {
		t.Errorf("revision %d with %d writes of one policy each", state.Revision, len(stored))
	}
	w := watching(s)
	if err := w.reach(t.Context(), state.Revision); err != nil {
		t.Error(err)
	}
	w.agree(t)
}

func writeForEver(url string) {
	ctx := context.Background()
	s, err := postgres.Open(ctx, url, options())
	for n := 1; err == nil; n++ {
		if _, err = s.AddPolicies(ctx, []policy.Policy{tcp(policy.AppID(os.Getenv("TULLE_NAME")), "b", n)}); err == nil {
			fmt.Println(n)
		}
	}
	fmt.Println(err)
	os.Exit(1)
}

// TestRestoreIsNoticed puts another history under a server: it must not take
// that one's changes for the next of its own.
func TestRestoreIsNoticed(t *testing.T) {
	cluster := pgtest.Shared(t)
	url := cluster.Database()
	s := open(t, url, options())
	for port := range 3 {
		if _, err := s.AddPolicies(t.Context(), []policy.Policy{tcp("a", "b", port+1)}); err != nil {
			t.Fatal(err)
		}
	}
	cluster.Exec(url, `UPDATE meta SET epoch = 'restored'`)
	for _, after := range []api.Revision{1, 3} {
		if _, err := s.Changes(t.Context(), after, 10); !errors.Is(err, store.ErrCompacted) {
			t.Errorf("changes after %d of another epoch: %v, want %v", after, err, store.ErrCompacted)
		}
	}
	state, err := s.State(t.Context())
	if err != nil || state.Epoch != "restored" || s.Epoch() != "restored" {
		t.Errorf("epoch %q, %q, %v", state.Epoch, s.Epoch(), err)
	}
	if ds, err := s.Changes(t.Context(), 1, 10); err != nil || len(ds) != 2 {
		t.Errorf("changes of the epoch that is known now: %v, %v", ds, err)
	}
}
