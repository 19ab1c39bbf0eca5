package holder

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tulle/overlay/control"
)

const childEnv = "TULLE_TEST_HOLDER"

// TestMain is a holder when OpenProcess starts it.
func TestMain(m *testing.M) {
	if os.Getenv(childEnv) == "" {
		os.Exit(m.Run())
	}
	if err := Run(context.Background(), os.Args[len(os.Args)-1], os.NewFile(3, "ready")); err != nil {
		os.Exit(1)
	}
}

func open(t *testing.T, dir string) *Process {
	t.Helper()
	t.Setenv(childEnv, "1")
	p, err := OpenProcess(Options{Dir: dir, Command: []string{os.Args[0], "holder"}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := Stop(ctx, dir); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return p
}

func temp(t *testing.T, text string) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "kept")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	return f
}

func text(t *testing.T, f *os.File) string {
	t.Helper()
	if f == nil {
		return "nothing"
	}
	b := make([]byte, 64)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return string(b[:n])
}

func openFiles(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// holderPID asks the kernel who listens.
func holderPID(t *testing.T, p *Process) int {
	t.Helper()
	raw, err := p.c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var cred *unix.Ucred
	if err := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		t.Fatal(err)
	}
	return int(cred.Pid)
}

func TestProcessOutlivesTheDaemon(t *testing.T) {
	dir := t.TempDir()
	before := openFiles(t)
	p := open(t, dir)
	if got, err := p.Take(); err != nil || len(got) != 0 {
		t.Errorf("a new holder has %v, %v", got, err)
	}
	for _, s := range []string{"one", "two", "three"} {
		if err := p.Put(s, temp(t, s)); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Put("two", temp(t, "two again")); err != nil {
		t.Fatal(err)
	}
	if err := p.Drop("three"); err != nil {
		t.Fatal(err)
	}
	if err := p.Drop("never"); err != nil {
		t.Errorf("drop of what is not kept: %v", err)
	}
	if p.Len() != 2 {
		t.Errorf("%d kept", p.Len())
	}
	pid := holderPID(t, p)
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Errorf("the holder's session is %d, %v; it is %d", sid, err, pid)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}

	p = open(t, dir)
	if got := holderPID(t, p); got != pid {
		t.Errorf("another holder: %d, was %d", got, pid)
	}
	got, err := p.Take()
	if err != nil {
		t.Fatal(err)
	}
	if a, b := text(t, got["one"]), text(t, got["two"]); len(got) != 2 || a != "one" || b != "two again" {
		t.Errorf("%d descriptors: %q, %q", len(got), a, b)
	}
	closeAll(got)
	for _, s := range []string{"one", "two"} {
		if err := p.Drop(s); err != nil {
			t.Error(err)
		}
	}
	// Empty, and its daemon leaves: it ends, and its socket with it.
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	_ = p.Close()
	poll := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	if n, err := unix.Poll(poll, 10_000); err != nil || n != 1 {
		t.Fatalf("the empty holder goes on: %d, %v", n, err)
	}
	if _, err := os.Lstat(filepath.Join(dir, SocketName)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("its socket: %v", err)
	}
	// The pidfd and three files of this test are still open.
	if after := openFiles(t); after > before+1+4+2 {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
}

func TestProcessManyDescriptors(t *testing.T) {
	dir := t.TempDir()
	p := open(t, dir)
	var want []string
	for i := range 2*chunk + 7 {
		name := fmt.Sprintf("c-%03d", i)
		want = append(want, name)
		f := temp(t, name)
		if err := p.Put(name, f); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	_ = p.Close()
	p = open(t, dir)
	got, err := p.Take()
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(got)
	if names := slices.Sorted(maps.Keys(got)); !slices.Equal(names, want) {
		t.Errorf("got %d names, want %d", len(names), len(want))
	}
	for name, f := range got {
		if text(t, f) != name {
			t.Errorf("%s is %q", name, text(t, f))
		}
	}
}

func TestProcessReplacesADeadHolder(t *testing.T) {
	dir := t.TempDir()
	p := open(t, dir)
	if err := p.Put("one", temp(t, "one")); err != nil {
		t.Fatal(err)
	}
	pid := holderPID(t, p)
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := p.Put("two", temp(t, "two")); err != nil {
		t.Fatal(err)
	}
	if holderPID(t, p) == pid {
		t.Error("the dead holder answers")
	}
	_ = p.Close()
	p = open(t, dir)
	got, err := p.Take()
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(got)
	if len(got) != 2 || text(t, got["one"]) != "one" || text(t, got["two"]) != "two" {
		t.Errorf("kept: %v", got)
	}
}

// A daemon that begins another life, under another lease, takes back what it kept,
// though the holder has died unnoticed.
func TestTakeFromADeadHolder(t *testing.T) {
	p := open(t, t.TempDir())
	for _, s := range []string{"one", "two"} {
		if err := p.Put(s, temp(t, s)); err != nil {
			t.Fatal(err)
		}
	}
	pid := holderPID(t, p)
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 10_000); err != nil || n != 1 {
		t.Fatalf("the holder goes on: %d, %v", n, err)
	}
	got, err := p.Take()
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(got)
	if len(got) != 2 || text(t, got["one"]) != "one" || text(t, got["two"]) != "two" {
		t.Errorf("taken: %v", got)
	}
	if holderPID(t, p) == pid {
		t.Error("the dead holder answers")
	}
}

// short is a listener that is out of descriptors at first.
type short struct {
	net.Listener
	left int
}

func (s *short) Accept() (net.Conn, error) {
	if s.left--; s.left >= 0 {
		return nil, &net.OpError{Op: "accept", Net: "unix", Err: os.NewSyscallError("accept4", unix.EMFILE)}
	}
	return s.Listener.Accept()
}

// A holder that cannot accept for a moment keeps what it has.
func TestServeWithoutDescriptors(t *testing.T) {
	dir := t.TempDir()
	l, err := control.Listen(filepath.Join(dir, SocketName), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, &short{l, 2}, time.Minute) }()
	p, err := OpenProcess(Options{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Put("one", temp(t, "one")); err != nil {
		t.Errorf("keep: %v", err)
	}
	_ = p.Close()
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("the holder has ended: %v", err)
	}
}

func TestServeSurvivesGarbage(t *testing.T) {
	dir := t.TempDir()
	l, err := control.Listen(filepath.Join(dir, SocketName), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	before := openFiles(t)
	go func() { ended <- serve(ctx, l, time.Minute) }()
	hold, err := net.Dial("unix", filepath.Join(dir, SocketName))
	if err != nil {
		t.Fatal(err)
	}
	f := temp(t, "x")
	for _, b := range []string{`{"op":"put","name":"../x"}`, `{"op":"explode"}`, `[]`, ``, `{"op":"take"}`, `{"op":"put"}`} {
		c, err := net.Dial("unix", filepath.Join(dir, SocketName))
		if err != nil {
			t.Fatal(err)
		}
		uc := c.(*net.UnixConn)
		if err := control.WriteMessage(uc, []byte(b), f); err != nil {
			t.Fatal(err)
		}
		if _, _, err := receive(uc); err == nil {
			t.Errorf("%q was taken", b)
		}
		_ = c.Close()
	}
	_ = hold.Close()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	_ = f.Close()
	if after := openFiles(t); after > before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
}

// The sender is a process of the same user. Property: no panic, and what is
// accepted has a safe name exactly when it needs one.
func FuzzDecodeRequest(f *testing.F) {
	f.Add([]byte(`{"op":"put","name":"c1"}`), 1)
	f.Add([]byte(`{"op":"drop","name":"c1"}`), 0)
	f.Add([]byte(`{"op":"take"}`), 0)
	f.Fuzz(func(t *testing.T, b []byte, files int) {
		r, err := decodeRequest(b, files)
		if err != nil {
			return
		}
		if named := r.Op == opPut || r.Op == opDrop; named && checkName(r.Name) != nil {
			t.Fatalf("accepted %+v", r)
		}
		if (r.Op == opPut) != (files == 1) {
			t.Fatalf("accepted %+v with %d descriptors", r, files)
		}
	})
}

// FuzzReceive: what a daemon reads from the holder's socket, where a former
// version or another process may answer. An answer is whole, with a name for
// each descriptor, or an error with which no descriptor stays.
func FuzzReceive(f *testing.F) {
	framed := func(s string) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...) }
	f.Add(framed(`{"names":["tun-c1"]}`), uint8(1))
	f.Add(framed(`{"names":["tun-c1","pid-c1"],"more":true}`), uint8(1))
	f.Add(framed(`{"error":"no"}`), uint8(2))
	f.Add(framed(`{}`), uint8(0))
	f.Add(framed(`{"names":null`), uint8(1))
	f.Add([]byte{0, 1, 0, 1}, uint8(1))
	f.Add([]byte{0}, uint8(0))
	f.Fuzz(func(t *testing.T, b []byte, n uint8) {
		if len(b) > 64<<10 {
			return // more than the socket holds, and nobody reads meanwhile
		}
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		a, z := asConn(t, fds[0]), asConn(t, fds[1])
		defer a.Close()
		null, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer null.Close()
		var rights []byte
		sent := make([]int, n%4)
		for i := range sent {
			sent[i] = int(null.Fd())
		}
		if len(sent) > 0 && len(b) > 0 {
			rights = unix.UnixRights(sent...)
		}
		if _, _, err := z.WriteMsgUnix(b, rights, nil); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		got, files, err := receive(a)
		if err != nil {
			if len(files) != 0 || len(got.Names) != 0 {
				t.Errorf("%d descriptors and %d names beside %v", len(files), len(got.Names), err)
			}
			return
		}
		defer control.CloseAll(files)
		if len(files) != len(sent) || len(got.Names) != len(sent) || got.Error != "" {
			t.Errorf("%+v with %d descriptors, %d were sent", got, len(files), len(sent))
		}
	})
}

func asConn(t *testing.T, fd int) *net.UnixConn {
	t.Helper()
	f := os.NewFile(uintptr(fd), "socketpair")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	return c.(*net.UnixConn)
}
