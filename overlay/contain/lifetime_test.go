package contain

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"tulle/overlay/control"
)

func TestStatusIsTheCommands(t *testing.T) {
	eachUser(t, func(t *testing.T, uid int) {
		c := newCell(t)
		for _, row := range []struct {
			name    string
			command []string
			want    int
			says    string
		}{
			{"0", []string{c.binary, "probe-exit", "0"}, 0, ""},
			{"3", []string{c.binary, "probe-exit", "3"}, 3, ""},
			{"killed", []string{"/bin/sh", "-c", "kill -KILL $$"}, 128 + 9, ""},
			{"not there", []string{"no-such-command"}, StatusNotFound, "no-such-command: executable file not found in $PATH"},
			{"no such path", []string{"/no/such/command"}, StatusNotFound, "no such file or directory"},
			{"not executable", []string{"/etc/passwd"}, StatusNotExecutable, "/etc/passwd: permission denied"},
		} {
			t.Run(row.name, func(t *testing.T) {
				p := c.run(uid, func(o *supervised, _ *exec.Cmd) { o.Command = row.command })
				if got := p.status(); got != row.want || !strings.Contains(p.errors.String(), row.says) {
					t.Errorf("status %d, want %d; errors: %q, want %q", got, row.want, p.errors, row.says)
				}
				await(t, c.gone, "the detach")
			})
		}
	})
}

func TestSignalsArePassedOnce(t *testing.T) {
	eachUser(t, func(t *testing.T, uid int) {
		c := newCell(t)
		p := c.run(uid, nil, "probe-wait")
		p.expect("ready")
		for _, s := range []syscall.Signal{syscall.SIGUSR1, syscall.SIGINT, syscall.SIGHUP} {
			must(t, p.Process.Signal(s))
			p.expect(s.String())
		}
		must(t, p.Process.Signal(syscall.SIGTERM))
		p.expect("terminated") // and nothing before it a second time
		if got := p.status(); got != 7 {
			t.Errorf("status %d, want the command's 7; errors: %s", got, p.errors)
		}
	})
}

func TestWhatTheCommandLeftEndsWithIt(t *testing.T) {
	eachUser(t, func(t *testing.T, uid int) {
		c := newCell(t)
		lock := filepath.Join(c.dir, "lock")
		must(t, os.WriteFile(lock, nil, 0o666))
		must(t, os.Chmod(lock, 0o666))
		p := c.run(uid, nil, "probe-orphan", lock)
		if got := p.status(); got != 0 {
			t.Fatalf("status %d; errors: %s", got, p.errors)
		}
		wantUnlocked(t, lock, false)
	})
}

// TestDeaths kills the supervisor, then the init: whatever dies takes the rest
// with it, and the daemon hears of it.
func TestDeaths(t *testing.T) {
	eachUser(t, func(t *testing.T, uid int) {
		c := newCell(t)
		lock := filepath.Join(c.dir, "lock")
		must(t, os.WriteFile(lock, nil, 0o666))
		must(t, os.Chmod(lock, 0o666))
		hold := func(o *supervised, _ *exec.Cmd) {
			o.Command = []string{"/bin/sh", "-c", `exec 9>"$0" && flock 9 && echo ready && sleep 1000; true`, lock}
		}
		t.Run("supervisor", func(t *testing.T) {
			p := c.run(uid, hold)
			p.expect("ready")
			must(t, p.Process.Kill())
			_ = p.Wait()
			await(t, c.gone, "the end of the lifeline")
			wantUnlocked(t, lock, true)
		})
		t.Run("init", func(t *testing.T) {
			p := c.run(uid, hold)
			p.expect("ready")
			must(t, unix.Kill(child(t, p.Process.Pid), unix.SIGKILL))
			if got := p.status(); got != StatusOwn || !strings.Contains(p.errors.String(), "init was killed") {
				t.Errorf("status %d, errors: %s", got, p.errors)
			}
			await(t, c.gone, "the end of the lifeline")
			wantUnlocked(t, lock, false)
		})
	})
}

// TestResumeAfterTheDaemonsRestart: same device, same command, other daemon.
func TestResumeAfterTheDaemonsRestart(t *testing.T) {
	eachUser(t, func(t *testing.T, uid int) {
		c := newCell(t)
		p := c.run(uid, nil, "probe-send")
		p.expect("ready")
		if r := await(t, c.attaches, "the attach"); r.Resume {
			t.Error("the first attach asks to resume")
		}
		say := func(text string) {
			_, err := p.in.Write([]byte(text + "\n"))
			must(t, err)
		}
		say("before")
		c.awaitPacket("before")
		for _, text := range []string{"after the first restart", "after the second"} {
			c.stop()
			c.dropDevices()
			say("meanwhile") // waits in the device, which the supervisor keeps alive
			c.start()
			r := await(t, c.attaches, "the attach that resumes")
			if !r.Resume || r.Container != container || r.App.Name != "web" {
				t.Errorf("attach %+v", r.Attach)
			}
			c.awaitPacket("meanwhile")
			say(text)
			c.awaitPacket(text)
		}
		must(t, p.in.Close())
		if got := p.status(); got != 0 {
			t.Errorf("status %d, errors: %s", got, p.errors)
		}
	})
}

func TestDaemonThatRefusesForGoodEndsTheContainer(t *testing.T) {
	eachUser(t, func(t *testing.T, uid int) {
		c := newCell(t)
		p := c.run(uid, nil, "probe-wait")
		p.expect("ready")
		c.stop()
		c.mu.Lock()
		c.resumable = false
		c.mu.Unlock()
		c.start()
		if got := p.status(); got != StatusOwn || !strings.Contains(p.errors.String(), "refuses the container") {
			t.Errorf("status %d, errors: %s", got, p.errors)
		}
	})
}

func TestRefusedAttachStartsNothing(t *testing.T) {
	eachUser(t, func(t *testing.T, uid int) {
		c := newCell(t)
		c.mu.Lock()
		c.refuse = control.Errorf(control.CodePoolEmpty, "no address is free on this cell")
		c.mu.Unlock()
		mark := filepath.Join(c.dir, "mark")
		p := c.run(uid, func(o *supervised, _ *exec.Cmd) { o.Command = []string{"/usr/bin/touch", mark} })
		if got := p.status(); got != StatusOwn || !strings.Contains(p.errors.String(), "no address is free on this cell") {
			t.Errorf("status %d, errors: %s", got, p.errors)
		}
		if _, err := os.Stat(mark); !errors.Is(err, os.ErrNotExist) {
			t.Error("the command ran")
		}
	})
}

func TestDaemonNotThere(t *testing.T) {
	eachUser(t, func(t *testing.T, uid int) {
		c := newCell(t)
		c.stop()
		p := c.run(uid, nil, "probe-exit", "0")
		if got := p.status(); got != StatusOwn || !strings.Contains(p.errors.String(), "no cell daemon listens on "+c.socket+": start tulle-celld") {
			t.Errorf("status %d, errors: %s", got, p.errors)
		}
	})
}

// TestPacketsDoNotWakeTheSupervisor: its duplicate must not be in a poller.
func TestPacketsDoNotWakeTheSupervisor(t *testing.T) {
	eachUser(t, func(t *testing.T, uid int) {
		c := newCell(t)
		p := c.run(uid, nil, "probe-send")
		p.expect("ready")
		await(t, c.attaches, "the attach")
		const packets = 200
		before := wakeups(t, p.Process.Pid)
		for i := range packets {
			text := fmt.Sprintf("knock %d.", i)
			_, err := p.in.Write([]byte(text + "\n"))
			must(t, err)
			c.awaitPacket(text) // one by one, or the kernel wakes once for many
		}
		if woken := wakeups(t, p.Process.Pid) - before; woken > packets/5 {
			t.Errorf("%d packets woke the supervisor %d times", packets, woken)
		}
	})
}

// TestTerminal gives the supervisor a terminal of its own: Ctrl-C reaches the
// command once, and the terminal is the supervisor's again in the end.
func TestTerminal(t *testing.T) {
	eachUser(t, func(t *testing.T, uid int) {
		c := newCell(t)
		master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
		must(t, err)
		defer master.Close()
		must(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
		n, err := unix.IoctlGetUint32(int(master.Fd()), unix.TIOCGPTN)
		must(t, err)
		tty, err := os.OpenFile("/dev/pts/"+strconv.Itoa(int(n)), os.O_RDWR|unix.O_NOCTTY, 0)
		must(t, err)
		// No ^C among what the command says: the kernel may drop it with what a signal flushes.
		mode, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
		must(t, err)
		mode.Lflag &^= unix.ECHO
		must(t, unix.IoctlSetTermios(int(tty.Fd()), unix.TCSETS, mode))
		if uid != os.Geteuid() {
			must(t, tty.Chown(uid, uid))
		}
		p := c.run(uid, func(_ *supervised, cmd *exec.Cmd) {
			cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
			if cmd.SysProcAttr == nil {
				cmd.SysProcAttr = &syscall.SysProcAttr{}
			}
			cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
		}, "probe-wait")
		must(t, tty.Close())
		p.out = bufio.NewReader(master)
		p.expect("ready")
		_, err = master.Write([]byte{3})
		must(t, err)
		p.expect("interrupt")
		// Ctrl-Z stops command and supervisor; the shell's fg continues both.
		_, err = master.Write([]byte{26})
		must(t, err)
		var ws unix.WaitStatus
		_, err = unix.Wait4(p.Process.Pid, &ws, unix.WUNTRACED, nil)
		must(t, err)
		if !ws.Stopped() {
			t.Fatalf("Ctrl-Z: the supervisor is %v", ws)
		}
		if group, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPGRP); err != nil || group != p.Process.Pid {
			t.Errorf("stopped, the terminal belongs to %d (%v), not to the supervisor %d", group, err, p.Process.Pid)
		}
		must(t, p.Process.Signal(syscall.SIGCONT))
		must(t, p.Process.Signal(syscall.SIGUSR1))
		p.expect("user defined signal 1")
		_, err = master.Write([]byte{3})
		must(t, err)
		p.expect("interrupt") // the terminal is the command's again
		must(t, p.Process.Signal(syscall.SIGTERM))
		p.expect("terminated")
		if got := p.status(); got != 7 {
			t.Errorf("status %d", got)
		}
	})
}

// wantUnlocked fails if a process still holds the lock; with wait it lets the
// kernel finish its killing first.
func wantUnlocked(t *testing.T, path string, wait bool) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	how := unix.LOCK_EX | unix.LOCK_NB
	if wait {
		how = unix.LOCK_EX
	}
	done := make(chan error, 1)
	go func() { done <- unix.Flock(int(f.Fd()), how) }()
	if err := await(t, done, "the end of what held the lock"); err != nil {
		t.Errorf("a process of the container is still there: %v", err)
	}
}

// child is the only child of a process: the init.
func child(t *testing.T, pid int) int {
	t.Helper()
	tasks, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/children")
	must(t, err)
	var found []string
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		must(t, err)
		found = append(found, strings.Fields(string(b))...)
	}
	if diff := cmp.Diff(1, len(found)); diff != "" {
		t.Fatalf("children of the supervisor: %v", found)
	}
	n, err := strconv.Atoi(found[0])
	must(t, err)
	return n
}

// wakeups counts how often any thread of a process has slept.
func wakeups(t *testing.T, pid int) int {
	t.Helper()
	tasks, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/status")
	must(t, err)
	sum := 0
	for _, task := range tasks {
		b, _ := os.ReadFile(task) // a thread may have ended
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(line, "voluntary_ctxt_switches:"); ok {
				n, err := strconv.Atoi(strings.TrimSpace(v))
				must(t, err)
				sum += n
			}
		}
	}
	return sum
}
