package demo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stopPatience is how long a process may take to end in order before it is killed.
const stopPatience = 5 * time.Second

// process is one that the world started.
type process struct {
	name    string
	cmd     *exec.Cmd
	log     string // file with what it wrote to standard error
	ready   chan json.RawMessage
	done    chan struct{}
	waitErr error // set when done is closed
}

// program says what to start.
type program struct {
	name    string
	path    string
	args    []string
	env     []string
	daemon  bool // confined, and under the world's user
	netns   *os.File
	out, in *os.File
}

// starter is a thread that starts processes. Children inherit from the thread
// what cannot be said per child, and a parent-death signal is tied to it: it
// lives as long as the world, and if the whole program is killed, so are they.
type starter struct {
	work chan func()
	done chan struct{}
}

func newStarter(prepare func()) *starter {
	s := &starter{work: make(chan func()), done: make(chan struct{})}
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		defer close(s.done)
		prepare()
		for f := range s.work {
			f()
		}
	}()
	return s
}

// start starts cmd, in a network namespace if one is given.
func (s *starter) start(cmd *exec.Cmd, netns *os.File) error {
	err := make(chan error, 1)
	s.work <- func() { err <- startIn(cmd, netns) }
	return <-err
}

func startIn(cmd *exec.Cmd, netns *os.File) error {
	if netns == nil {
		return cmd.Start()
	}
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer own.Close()
	if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	return errors.Join(cmd.Start(), unix.Setns(int(own.Fd()), unix.CLONE_NEWNET))
}

func (s *starter) close() {
	close(s.work)
	<-s.done
}

// confine makes the thread one whose children never gain a privilege again.
func confine() {
	unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0) // EPERM for an ordinary user, who has none
	}
}

// start runs p with its standard error going to a log file. A daemon's
// standard output is read for its ready line.
func (w *World) start(p program) (*process, error) {
	proc := &process{
		name:  p.name,
		cmd:   exec.Command(p.path, p.args...),
		log:   filepath.Join(w.Dir, "logs", p.name+".log"),
		ready: make(chan json.RawMessage, 1),
		done:  make(chan struct{}),
	}
	stderr, err := os.OpenFile(proc.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer stderr.Close()
	cmd := proc.cmd
	cmd.Dir = w.Dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + w.Dir}, p.env...)
	cmd.Stderr = stderr
	// A group of its own: an interrupt from the terminal is the world's to handle.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	starter := w.plain
	var stdout io.ReadCloser
	if p.daemon {
		starter = w.confined
		if w.root {
			cmd.SysProcAttr.Credential = &syscall.Credential{Uid: w.uid, Gid: w.uid}
		}
		if stdout, err = cmd.StdoutPipe(); err != nil {
			return nil, err
		}
	} else {
		cmd.Stdin, cmd.Stdout = p.in, p.out
	}
	if err := starter.start(cmd, p.netns); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	w.track(proc)
	go proc.wait(stdout)
	return proc, nil
}

func (p *process) wait(stdout io.Reader) {
	if stdout != nil {
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			var r struct {
				Ready bool `json:"ready"`
			}
			if json.Unmarshal(lines.Bytes(), &r) == nil && r.Ready {
				select {
				case p.ready <- bytes.Clone(lines.Bytes()):
				default:
				}
			}
		}
	}
	p.waitErr = p.cmd.Wait()
	close(p.done)
}

// awaitReady decodes the ready line into v.
func (p *process) awaitReady(ctx context.Context, v any) error {
	select {
	case line := <-p.ready:
		if err := json.Unmarshal(line, v); err != nil {
			return fmt.Errorf("ready line of %s: %w", p.name, err)
		}
		return nil
	case <-p.done:
		return p.ended()
	case <-ctx.Done():
		return fmt.Errorf("wait for %s to be ready: %w%s", p.name, ctx.Err(), p.tail())
	}
}

// ended is the error of a process that should still be there.
func (p *process) ended() error {
	state := "with status 0"
	if p.waitErr != nil {
		state = p.waitErr.Error()
	}
	return fmt.Errorf("%s ended: %s%s", p.name, state, p.tail())
}

// tail is the end of what the process logged, for an error message.
func (p *process) tail() string {
	b, err := os.ReadFile(p.log)
	if err != nil || len(bytes.TrimSpace(b)) == 0 {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return "\n    " + strings.Join(lines[max(0, len(lines)-8):], "\n    ")
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// kill ends the process with SIGKILL and waits for it.
func (p *process) kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill %s: %w", p.name, err)
	}
	<-p.done
	return nil
}

// stop asks the process to end, by what ask does, and kills it if that takes
// longer than patience, which is an error.
func (p *process) stop(patience time.Duration, ask func() error) error {
	if !p.alive() {
		return nil
	}
	if err := ask(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return errors.Join(fmt.Errorf("stop %s: %w", p.name, err), p.kill())
	}
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case <-p.done:
		return nil
	case <-late.C:
		return errors.Join(fmt.Errorf("%s did not end within %v and was killed%s", p.name, patience, p.tail()), p.kill())
	}
}

func (p *process) terminate(patience time.Duration) error {
	return p.stop(patience, func() error { return p.cmd.Process.Signal(syscall.SIGTERM) })
}
