// Package pgrun runs a PostgreSQL server of one's own: a temporary cluster made
// with the programs of Debian's package, reached over a unix socket, gone with
// the process that made it. Tests (package pgtest) and measurements start it;
// the product never does. A Server is for one goroutine.
package pgrun

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
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// ErrMissing: the programs are not installed.
var ErrMissing = errors.New("needs PostgreSQL: install Debian's package postgresql")

// user is the cluster's superuser, who needs no password.
const user = "tulle"

// nobody runs the server where the caller is root: PostgreSQL refuses to be.
const nobody = 65534

// patience is how long the server may take to start.
const patience = time.Minute

// Server is a PostgreSQL server.
type Server struct {
	bin  string       // directory of the programs
	dir  string       // of the data and the socket
	made atomic.Int32 // databases so far

	process *os.Process
	ended   chan struct{} // closed when process has
}

// Start makes and starts a server, with more settings of postgresql.conf, the
// last of which count. It keeps nothing on the disk for sure (fsync is off)
// unless they say so. The caller closes it.
func Start(settings ...string) (*Server, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil || len(found) == 0 {
		return nil, ErrMissing
	}
	slices.Sort(found)
	// A socket's path must fit into 107 bytes, which a test's own directory may not.
	dir, err := os.MkdirTemp("", "tulle-pg-")
	if err != nil {
		return nil, err
	}
	s := &Server{bin: filepath.Dir(found[len(found)-1]), dir: dir}
	if err := s.create(settings); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Server) create(settings []string) error {
	if err := own(s.dir); err != nil {
		return err
	}
	initdb := s.command("initdb", "-D", s.data(), "-U", user, "-A", "trust", "-E", "UTF8", "--no-locale", "-N")
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	if err := s.Set("listen_addresses = ''", "unix_socket_directories = '"+s.dir+"'",
		"fsync = off", "lc_messages = 'C'", "max_connections = 200"); err != nil {
		return err
	}
	if err := s.Set(settings...); err != nil {
		return err
	}
	return s.Restart()
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

// own gives a file to the server's user.
func own(path string) error {
	if os.Geteuid() == 0 {
		return os.Chown(path, nobody, nobody)
	}
	return nil
}

func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"}
	// The server goes with the process, however that ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT, Setpgid: true}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody, NoSetGroups: false}
	}
	return cmd
}

// File writes a file that only the server's user may read, such as a key, and
// gives its path.
func (s *Server) File(name string, text []byte) (string, error) {
	path := filepath.Join(s.dir, name)
	return path, errors.Join(os.WriteFile(path, text, 0o600), own(path))
}

// Set adds settings to postgresql.conf, for the next Restart.
func (s *Server) Set(settings ...string) error {
	f, err := os.OpenFile(filepath.Join(s.data(), "postgresql.conf"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strings.Join(settings, "\n") + "\n")
	return errors.Join(err, f.Close())
}

// Stop ends the server at once, as a crash would. Stopping it twice is no error.
func (s *Server) Stop() error {
	if s.process == nil {
		return nil
	}
	if err := s.process.Signal(syscall.SIGQUIT); err != nil {
		return fmt.Errorf("stop PostgreSQL: %w", err)
	}
	<-s.ended
	s.process = nil
	return nil
}

// Close ends the server and removes what it kept.
func (s *Server) Close() error { return errors.Join(s.Stop(), os.RemoveAll(s.dir)) }

// Restart starts the server, having stopped it if it ran, and returns when it
// takes connections.
func (s *Server) Restart() error {
	if err := s.Stop(); err != nil {
		return err
	}
	cmd := s.command("postgres", "-D", s.data())
	log, err := cmd.StderrPipe()
	if err != nil {
		return err
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
		return fmt.Errorf("start PostgreSQL: %w", err)
	}
	s.process, s.ended = cmd.Process, ended
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
			return fmt.Errorf("PostgreSQL did not start:\n%s", said.String())
		}
		return nil
	case <-time.After(patience):
		return fmt.Errorf("PostgreSQL is not ready after %s", patience)
	}
}

// Database makes an empty database and gives its URL.
func (s *Server) Database() (string, error) {
	name := fmt.Sprintf("tulle_%d", s.made.Add(1))
	return s.URL(name), Exec(s.URL("postgres"), "CREATE DATABASE "+name)
}

// URL is that of a database, over the socket.
func (s *Server) URL(database string) string {
	u := url.URL{Scheme: "postgres", Path: "/" + database, RawQuery: url.Values{"host": {s.dir}, "user": {user}}.Encode()}
	return u.String()
}

// Exec runs a statement on a connection of its own.
func Exec(url, statement string, args ...any) error {
	conn, err := pgx.Connect(context.Background(), url)
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(context.Background(), statement, args...); err != nil {
		return fmt.Errorf("%s: %w", statement, err)
	}
	return nil
}
