package cli

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
	"strings"
	"syscall"
	"time"
)

// child is a program that runs in the foreground beside this one.
type child struct {
	cmd   *exec.Cmd
	log   string // file with what it writes to standard error
	ready chan []byte
	done  chan struct{} // closed when it has ended
	err   error         // how; written before
}

// startChild starts a program. It is in a process group of its own, since a
// Ctrl-C of the terminal is for the parent alone, and dies if the thread that
// called this does.
func startChild(path, log string, args ...string) (*child, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	c := &child{cmd: exec.Command(path, args...), log: log, ready: make(chan []byte, 1), done: make(chan struct{})}
	c.cmd.Stderr = out
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", c.name(), err)
	}
	go c.wait(stdout)
	return c, nil
}

func (c *child) name() string { return filepath.Base(c.cmd.Path) }

// wait takes the ready line out of the program's output and outlives it.
func (c *child) wait(stdout io.Reader) {
	defer close(c.done)
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		var r struct{ Ready bool }
		if json.Unmarshal(lines.Bytes(), &r) == nil && r.Ready {
			select {
			case c.ready <- bytes.Clone(lines.Bytes()):
			default:
			}
		}
	}
	c.err = c.cmd.Wait()
}

// awaitReady decodes the ready line into v.
func (c *child) awaitReady(ctx context.Context, v any) error {
	late := time.NewTimer(devPatience)
	defer late.Stop()
	select {
	case line := <-c.ready:
		if err := json.Unmarshal(line, v); err != nil {
			return fmt.Errorf("ready line of %s: %w", c.name(), err)
		}
		return nil
	case <-c.done:
		return c.ended()
	case <-ctx.Done():
		return ctx.Err()
	case <-late.C:
		return fmt.Errorf("%s is not ready after %v%s", c.name(), devPatience, c.tail())
	}
}

// ended is the error of a program that should still run.
func (c *child) ended() error {
	how := "exit status 0"
	if c.err != nil {
		how = c.err.Error()
	}
	return fmt.Errorf("%s ended: %s%s", c.name(), how, c.tail())
}

// tail is the end of what the program logged.
func (c *child) tail() string {
	const most = 8
	b, err := os.ReadFile(c.log)
	if text := strings.TrimSpace(string(b)); err == nil && text != "" {
		lines := strings.Split(text, "\n")
		return ":\n  " + strings.Join(lines[max(0, len(lines)-most):], "\n  ")
	}
	return ""
}

// stop ends the program and waits for it; one that has ended is no error, one
// that must be killed is.
func (c *child) stop() error {
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", c.name(), err)
	}
	late := time.NewTimer(devPatience)
	defer late.Stop()
	select {
	case <-c.done:
		return nil
	case <-late.C:
	}
	err := fmt.Errorf("%s did not end within %v and was killed%s", c.name(), devPatience, c.tail())
	_ = c.cmd.Process.Kill() // it has ended if this cannot
	<-c.done
	return err
}

// runTool runs a program to its end. What it says is for its errors only.
func runTool(ctx context.Context, path string, args ...string) error {
	out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", filepath.Base(path), args[0], err, bytes.TrimSpace(out))
	}
	return nil
}

// lockDev keeps two at once out of one directory. The lock goes with the
// process, however it ends.
func lockDev(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("another tulle dev runs in %s", dir)
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() { f.Close() }, nil
}
