package control

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestListen(t *testing.T) {
	t.Run("mode, and nothing left", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "tulle")
		path := filepath.Join(dir, "s")
		l, err := Listen(path, 0o660)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != fs.ModeSocket|0o660 {
			t.Errorf("mode is %v", info.Mode())
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		// Containers hide the directory by a mount that would go with it.
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("the directory holds %v, %v; it should be there and empty", left, err)
		}
	})
	t.Run("stale file is replaced", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		dead.SetUnlinkOnClose(false)
		_ = dead.Close()
		l, err := Listen(path, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Run("a living daemon's is not", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		l, err := Listen(path, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if _, err := Listen(path, 0o600); !errors.Is(err, ErrInUse) {
			t.Errorf("got %v, want ErrInUse", err)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("its file is gone: %v", err)
		}
	})
	t.Run("another's file is never removed", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Listen(path, 0o600); err == nil {
			t.Error("listens over a plain file")
		}
		if b, _ := os.ReadFile(path); string(b) != "precious" {
			t.Error("the file was touched")
		}
	})
	t.Run("a successor's file is never removed", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		first, err := Listen(path, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		second, err := Listen(path, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer second.Close()
		_ = first.Close()
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("the successor's file: %v", err)
		}
	})
	for _, path := range []string{"@abstract", "relative/s", "", "/" + strings.Repeat("x", maxPath)} {
		if _, err := Listen(path, 0o600); err == nil {
			t.Errorf("listens on %.20q", path)
		}
	}
}

func TestDefaultSocket(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/1000")
	if got := DefaultSocket(); got != "/run/user/1000/tulle/celld.sock" {
		t.Error(got)
	}
	t.Setenv("XDG_RUNTIME_DIR", "")
	if got := DefaultSocket(); got != "/run/tulle/celld.sock" {
		t.Error(got)
	}
}
