// Package pgtest gives tests a PostgreSQL server of their own: a temporary
// cluster made with the programs of Debian's package, reached over a unix
// socket, gone with the test.
//
// Where the package is not installed a test is skipped with one loud line, and
// never with CI=true, where a missing server is a failure. Everything here is
// for the test's goroutine.
package pgtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// user is the cluster's superuser, who needs no password.
const user = "tulle"

// nobody runs the server where the test is root: PostgreSQL refuses to be.
const nobody = 65534

// patience is how long the server may take to start.
const patience = time.Minute

// Cluster is a PostgreSQL server in the hands of one test.
type Cluster struct {
	t testing.TB
	*instance
}

// instance is the server itself.
type instance struct {
	bin  string       // directory of the programs
	dir  string       // of the data and the socket
	made atomic.Int32 // databases so far

	process *os.Process
	ended   chan struct{} // closed when process has
}

var (
	mu     sync.Mutex // guards shared
	shared *instance  // nil: not started
)

// Main runs a package's tests, as its TestMain, and then ends the server that
// they shared.
func Main(m *testing.M) {
	status := m.Run()
	if shared != nil {
		if err := errors.Join(shared.stop(), os.RemoveAll(shared.dir)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			status = max(status, 1)
		}
	}
	os.Exit(status)
}

// Shared is the server that a package's tests share, each with databases of its
// own. It must not be stopped or set, and the package needs Main.
func Shared(t testing.TB) *Cluster {
	t.Helper()
	mu.Lock()
	defer mu.Unlock()
	if shared == nil {
		shared = start(t, nil).instance
	}
	return &Cluster{t, shared}
}

// Start makes and starts a server for the test's time, with more settings of
// postgresql.conf. It keeps nothing on the disk for sure (fsync is off).
func Start(t testing.TB, settings ...string) *Cluster {
	t.Helper()
	c := start(t, settings)
	t.Cleanup(func() {
		c.Stop()
		if err := os.RemoveAll(c.dir); err != nil {
			t.Error(err)
		}
	})
	return c
}

func start(t testing.TB, settings []string) *Cluster {
	t.Helper()
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil || len(found) == 0 {
		skip(t, "needs PostgreSQL: install Debian's package postgresql")
	}
	slices.Sort(found)
	// A socket's path must fit into 107 bytes, which a test's own directory may not.
	dir, err := os.MkdirTemp("", "tulle-pg-")
	if err != nil {
		t.Fatal(err)
	}
	c := &Cluster{t, &instance{bin: filepath.Dir(found[len(found)-1]), dir: dir}}
	started := false
	defer func() {
		if !started { // t.Fatal was called
			_ = errors.Join(c.stop(), os.RemoveAll(dir)) // the test has failed already
		}
	}()
	c.own(dir)
	initdb := c.command("initdb", "-D", c.data(), "-U", user, "-A", "trust", "-E", "UTF8", "--no-locale", "-N")
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	conf := append([]string{"listen_addresses = ''", "unix_socket_directories = '" + dir + "'",
		"fsync = off", "lc_messages = 'C'", "max_connections = 200"}, settings...)
	c.append("postgresql.conf", strings.Join(conf, "\n")+"\n")
	c.Restart()
	started = true
	return c
}

// skip is the only place where a test of PostgreSQL is skipped.
func skip(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("CANNOT RUN (CI=true makes that a failure): %s", why)
	}
	fmt.Fprintf(os.Stderr, "SKIPPED %s: %s\n", t.Name(), why)
	t.Skip(why)
}

func (c *Cluster) data() string { return filepath.Join(c.dir, "data") }

// own gives a file to the server's user.
func (c *Cluster) own(path string) {
	c.t.Helper()
	if os.Geteuid() == 0 {
		if err := os.Chown(path, nobody, nobody); err != nil {
			c.t.Fatal(err)
		}
	}
}

func (c *Cluster) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(c.bin, name), args...)
	cmd.Dir = c.dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"}
	// The server goes with the test, however that ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT, Setpgid: true}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody, NoSetGroups: false}
	}
	return cmd
}

func (c *Cluster) append(name, text string) {
	c.t.Helper()
	f, err := os.OpenFile(filepath.Join(c.data(), name), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Close()); err != nil {
		c.t.Fatal(err)
	}
}

// File writes a file that only the server's user may read, such as a key, and
// gives its path.
func (c *Cluster) File(name string, text []byte) string {
	c.t.Helper()
	path := filepath.Join(c.dir, name)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		c.t.Fatal(err)
	}
	c.own(path)
	return path
}

// Set adds settings to postgresql.conf, for the next Restart.
func (c *Cluster) Set(settings ...string) {
	c.t.Helper()
	c.append("postgresql.conf", strings.Join(settings, "\n")+"\n")
}

// Stop ends the server at once, as a crash would. Stopping it twice is no error.
func (c *Cluster) Stop() {
	c.t.Helper()
	if err := c.stop(); err != nil {
		c.t.Fatal(err)
	}
}

func (i *instance) stop() error {
	if i.process == nil {
		return nil
	}
	if err := i.process.Signal(syscall.SIGQUIT); err != nil {
		return fmt.Errorf("stop PostgreSQL: %w", err)
	}
	<-i.ended
	i.process = nil
	return nil
}

// Restart starts the server, having stopped it if it ran, and returns when it
// takes connections.
func (c *Cluster) Restart() {
	c.t.Helper()
	c.Stop()
	cmd := c.command("postgres", "-D", c.data())
	log, err := cmd.StderrPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	started := make(chan error, 1)
	ended := make(chan struct{})
	go func() {
		// The kernel sends Pdeathsig when the thread that started the child ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(ended)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // it ends by our signal
		}
	}()
	if err := <-started; err != nil {
		c.t.Fatalf("start PostgreSQL: %v", err)
	}
	c.process, c.ended = cmd.Process, ended
	ready := make(chan bool, 1)
	var said strings.Builder // until ready
	go func() {
		lines := bufio.NewScanner(log)
		for lines.Scan() {
			said.WriteString(lines.Text() + "\n")
			if strings.Contains(lines.Text(), "ready to accept connections") {
				ready <- true
				_, _ = io.Copy(io.Discard, log)
				return
			}
		}
		ready <- false
	}()
	select {
	case ok := <-ready:
		if !ok {
			c.t.Fatalf("PostgreSQL did not start:\n%s", said.String())
		}
	case <-time.After(patience):
		c.t.Fatalf("PostgreSQL is not ready after %s", patience)
	}
}

// Database makes an empty database and gives its URL.
func (c *Cluster) Database() string {
	c.t.Helper()
	name := fmt.Sprintf("tulle_%d", c.made.Add(1))
	c.Exec(c.URL("postgres"), "CREATE DATABASE "+name)
	return c.URL(name)
}

// URL is that of a database, over the socket.
func (c *Cluster) URL(database string) string {
	u := url.URL{Scheme: "postgres", Path: "/" + database, RawQuery: url.Values{"host": {c.dir}, "user": {user}}.Encode()}
	return u.String()
}

// Exec runs a statement on a connection of its own.
func (c *Cluster) Exec(url, statement string, args ...any) {
	c.t.Helper()
	conn := c.Connect(url)
	defer conn.Close(context.Background())
	if _, err := conn.Exec(context.Background(), statement, args...); err != nil {
		c.t.Fatalf("%s: %v", statement, err)
	}
}

// Connect opens a connection, which the caller closes.
func (c *Cluster) Connect(url string) *pgx.Conn {
	c.t.Helper()
	conn, err := pgx.Connect(context.Background(), url)
	if err != nil {
		c.t.Fatal(err)
	}
	return conn
}

// Cut ends every connection to the database at url but the caller's own.
func (c *Cluster) Cut(url string) {
	c.t.Helper()
	c.Exec(url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
}
