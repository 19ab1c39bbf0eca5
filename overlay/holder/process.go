package holder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

const (
	answerTimeout = 5 * time.Second
	startTimeout  = 10 * time.Second
)

// Options of a Process.
type Options struct {
	Dir string // the state directory
	// Command starts a holder in the directory that is appended to it; the
	// process must call Run with its descriptor 3 as ready.
	Command []string
	Log     *slog.Logger
}

// Process is a Keeper in a process of its own. It keeps duplicates here as
// well, and fills a new holder with them if the old one dies.
type Process struct {
	o Options

	mu     sync.Mutex // guards the fields below; held over a request
	c      *net.UnixConn
	files  map[string]*os.File
	closed bool
}

// OpenProcess connects to the holder in o.Dir, starting one if none answers.
func OpenProcess(o Options) (*Process, error) {
	p := &Process{o: o, files: map[string]*os.File{}}
	c, err := p.connect()
	if err != nil {
		return nil, fmt.Errorf("holder: %w", err)
	}
	p.c = c
	return p, nil
}

// connect dials, and starts a holder when nobody listens. A holder that is
// about to end may accept and hang up: the first request finds out.
func (p *Process) connect() (*net.UnixConn, error) {
	path := filepath.Join(p.o.Dir, SocketName)
	if c, err := net.DialTimeout("unix", path, answerTimeout); err == nil {
		return c.(*net.UnixConn), nil
	}
	if err := start(p.o.Command, p.o.Dir); err != nil {
		return nil, err
	}
	c, err := net.DialTimeout("unix", path, answerTimeout)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

// start runs a holder and returns when it listens.
func start(command []string, dir string) (err error) {
	if len(command) == 0 {
		return errors.New("no holder runs and there is no command to start one")
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	args := append(command[1:len(command):len(command)], dir)
	cmd := exec.Command(command[0], args...)
	// Nothing of the daemon's may be kept open by a process that outlives it,
	// least of all a pipe that somebody reads to its end. A session of its own
	// keeps a terminal's signals away.
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	go func() { _ = cmd.Wait() }() // if it ends before the daemon, nothing of it stays
	_ = r.SetReadDeadline(time.Now().Add(startTimeout))
	said, err := io.ReadAll(io.LimitReader(r, 4096))
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	switch string(said) {
	case "ok":
		return nil
	case "":
		return errors.New("start: it ended at once")
	}
	return fmt.Errorf("start: %s", said)
}

// do sends r. When the holder has died, a new one gets all that is kept here
// first.
func (p *Process) do(r request, files ...*os.File) error {
	if p.closed {
		return os.ErrClosed
	}
	if p.c != nil {
		if err := ask(p.c, r, files...); err == nil {
			return nil
		} else {
			p.o.Log.Warn("holder does not answer; starting another", "err", err)
			_ = p.c.Close()
			p.c = nil
		}
	}
	if err := p.again(); err != nil {
		return err
	}
	if err := ask(p.c, r, files...); err != nil {
		err = errors.Join(err, p.c.Close())
		p.c = nil
		return err
	}
	return nil
}

// again connects anew, and gives the holder, which may be another, all that is kept
// here.
func (p *Process) again() error {
	c, err := p.connect()
	if err != nil {
		return err
	}
	for name, f := range p.files {
		if err := ask(c, request{Op: opPut, Name: name}, f); err != nil {
			return errors.Join(err, c.Close())
		}
	}
	p.c = c
	return nil
}

func ask(c *net.UnixConn, r request, files ...*os.File) error {
	_ = c.SetDeadline(time.Now().Add(answerTimeout))
	if err := send(c, r, files...); err != nil {
		return err
	}
	_, _, err := receive(c)
	return err
}

// Take implements Keeper.
func (p *Process) Take() (map[string]*os.File, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, fmt.Errorf("holder: take: %w", os.ErrClosed)
	}
	got, err := p.takeAll()
	if err != nil {
		// It may have been ending when we connected, or have died since: a new one has
		// what is kept here, and nobody else may have that any more.
		if p.c != nil {
			_ = p.c.Close()
			p.c = nil
		}
		if err = p.again(); err == nil {
			got, err = p.takeAll()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("holder: take: %w", err)
	}
	for name, f := range got {
		d, err := Duplicate(f)
		if err != nil {
			closeAll(got)
			return nil, fmt.Errorf("holder: take: %w", err)
		}
		if old := p.files[name]; old != nil {
			_ = old.Close()
		}
		p.files[name] = d
	}
	return got, nil
}

func (p *Process) takeAll() (map[string]*os.File, error) {
	if p.c == nil {
		return nil, os.ErrClosed
	}
	_ = p.c.SetDeadline(time.Now().Add(answerTimeout))
	if err := send(p.c, request{Op: opTake}); err != nil {
		return nil, err
	}
	got := map[string]*os.File{}
	for {
		a, files, err := receive(p.c)
		if err != nil {
			closeAll(got)
			return nil, err
		}
		for i, name := range a.Names {
			got[name] = files[i]
		}
		if !a.More {
			return got, nil
		}
	}
}

// Put implements Keeper.
func (p *Process) Put(name string, f *os.File) error {
	if err := checkName(name); err != nil {
		return fmt.Errorf("holder: %w", err)
	}
	d, err := Duplicate(f)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.do(request{Op: opPut, Name: name}, d); err != nil {
		return errors.Join(fmt.Errorf("holder: keep %s: %w", name, err), d.Close())
	}
	if old := p.files[name]; old != nil {
		_ = old.Close()
	}
	p.files[name] = d
	return nil
}

// Drop implements Keeper.
func (p *Process) Drop(name string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.files[name]
	if f == nil {
		return nil
	}
	// First here: whatever becomes of the request, no new holder gets it.
	delete(p.files, name)
	err := errors.Join(p.do(request{Op: opDrop, Name: name}), f.Close())
	if err != nil {
		return fmt.Errorf("holder: drop %s: %w", name, err)
	}
	return nil
}

// Len implements Keeper.
func (p *Process) Len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.files)
}

// Close implements Keeper: the holder stays if it holds anything.
func (p *Process) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	closeAll(p.files)
	clear(p.files)
	if p.c == nil {
		return nil
	}
	return p.c.Close()
}

// Stop ends the holder in dir and all it keeps. That none runs is no error.
func Stop(ctx context.Context, dir string) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", filepath.Join(dir, SocketName))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("holder: %w", err)
	}
	defer c.Close()
	if err = ask(c.(*net.UnixConn), request{Op: opStop}); err == nil {
		_, err = io.Copy(io.Discard, c) // it hangs up when it is gone
	}
	// One that was ending on its own hung up first.
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		return fmt.Errorf("holder: stop: %w", err)
	}
	return nil
}
