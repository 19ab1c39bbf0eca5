package sqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tulle/overlay/netcfg/nstest"
	"tulle/policy"
	"tulle/policy/store"
	"tulle/policy/store/sqlite"
)

func options() sqlite.Options {
	return sqlite.Options{Lease: store.LeaseConfig{Network: netip.MustParsePrefix("10.255.0.0/16"), Bits: 24, Lifetime: time.Hour}}
}

// made makes a database with n policies and closes it.
func made(t testing.TB, n int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "policy.db")
	s, err := sqlite.Open(t.Context(), path, options())
	if err != nil {
		t.Fatal(err)
	}
	if n > 0 {
		if _, err := s.AddPolicies(t.Context(), many(n)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func many(n int) []policy.Policy {
	ps := make([]policy.Policy, n)
	for i := range ps {
		ps[i] = policy.Policy{Source: policy.AppID(fmt.Sprint("source-", i%500)), Destination: policy.AppID(fmt.Sprint("destination-", i%501)),
			Protocol: policy.TCP, Ports: policy.PortRange{Start: uint16(i%60000) + 1, End: uint16(i%60000) + 2}}
	}
	return ps
}

func TestOneServerOwnsTheFile(t *testing.T) {
	path := made(t, 1)
	first, err := sqlite.Open(t.Context(), path, options())
	if err != nil {
		t.Fatal(err)
	}
	_, err = sqlite.Open(t.Context(), path, options())
	if !errors.Is(err, store.ErrLocked) || !strings.Contains(err.Error(), fmt.Sprintf("pid %d", os.Getpid())) || !strings.Contains(err.Error(), path) {
		t.Errorf("a second server: %v; want %v, with the path and the pid", err, store.ErrLocked)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := sqlite.Open(t.Context(), path, options())
	if err != nil {
		t.Fatalf("after the first has gone: %v", err)
	}
	second.Close()
}

func TestDamagedFiles(t *testing.T) {
	foreign := filepath.Join(t.TempDir(), "other.db")
	db, err := sql.Open("sqlite", foreign)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(`CREATE TABLE recipes (name TEXT)`); err != nil {
		t.Fatal(err)
	}
	db.Close()

	text := filepath.Join(t.TempDir(), "text.db")
	if err := os.WriteFile(text, []byte(strings.Repeat("this is no database\n", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}

	torn := made(t, 5000)
	f, err := os.OpenFile(torn, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	for at := int64(8192); at < info.Size(); at += 4096 { // every page but the first two
		if _, err := f.WriteAt([]byte(strings.Repeat("\xA5", 512)), at); err != nil {
			t.Fatal(err)
		}
	}
	f.Close()

	short := made(t, 5000)
	if err := os.Truncate(short, 20480); err != nil {
		t.Fatal(err)
	}

	newer := made(t, 0)
	if db, err = sql.Open("sqlite", newer); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(`PRAGMA user_version = 1000`); err != nil {
		t.Fatal(err)
	}
	db.Close()

	for name, c := range map[string]struct {
		path string
		want error
		text string
	}{
		"another program's": {foreign, store.ErrCorrupt, "another program's"},
		"a text":            {text, store.ErrCorrupt, "not a database"},
		"overwritten pages": {torn, store.ErrCorrupt, torn},
		"cut off":           {short, store.ErrCorrupt, short},
		"newer":             {newer, store.ErrNewer, "schema 1000"},
		"a directory":       {t.TempDir(), syscall.EISDIR, "is a directory"},
		"no directory":      {filepath.Join(t.TempDir(), "no", "policy.db"), os.ErrNotExist, "no such file"},
	} {
		before, _ := os.ReadFile(c.path)
		_, err := sqlite.Open(t.Context(), c.path, options())
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v; want %v, saying %q", name, err, c.want, c.text)
		}
		if after, _ := os.ReadFile(c.path); string(after) != string(before) {
			t.Errorf("%s: the file was changed", name)
		}
	}
}

// TestFullDisk fills a small file system of its own namespace, in a child, until
// a write does not fit: the error says so, nothing of that write is stored, what
// was acknowledged is, and after space is made the store goes on.
func TestFullDisk(t *testing.T) {
	if dir := os.Getenv("TULLE_FULL_DISK"); dir != "" {
		fillDisk(t, dir)
		return
	}
	if out, err := exec.CommandContext(t.Context(), "unshare", "-Urm", "true").CombinedOutput(); err != nil {
		nstest.Skip(t, fmt.Sprintf("a file system of one's own needs a user namespace: %v: %s", err, out))
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "unshare", "-Urm", "sh", "-c",
		`mount -t tmpfs -o size=1m tulle "$1" && exec "$2" -test.run='^TestFullDisk$' -test.v`, "sh", dir, os.Args[0])
	cmd.Env = append(os.Environ(), "TULLE_FULL_DISK="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestFullDisk") {
		t.Fatalf("in the namespace: %v\n%s", err, out)
	}
}

func fillDisk(t *testing.T, dir string) {
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 300<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := sqlite.Open(t.Context(), filepath.Join(dir, "policy.db"), options())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	acknowledged := 0
	all := many(20_000)
	for ; ; acknowledged += 100 {
		if _, err = s.AddPolicies(t.Context(), all[acknowledged:acknowledged+100]); err != nil {
			break
		}
	}
	if !errors.Is(err, store.ErrFull) {
		t.Fatalf("after %d policies: %v, want %v", acknowledged, err, store.ErrFull)
	}
	check := func(want int) {
		t.Helper()
		ps, err := s.Policies(t.Context(), store.Filter{})
		if err != nil || len(ps) != want {
			t.Errorf("%d policies stored, %v; acknowledged were %d", len(ps), err, want)
		}
	}
	check(acknowledged)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AddPolicies(t.Context(), all[acknowledged:acknowledged+100]); err != nil {
		t.Fatalf("with space again: %v", err)
	}
	check(acknowledged + 100)
}

// TestKilled kills a process in the middle of its writes: every write that it
// acknowledged is there, whole.
func TestKilled(t *testing.T) {
	if path := os.Getenv("TULLE_KILLED"); path != "" {
		writeForEver(path)
	}
	path := filepath.Join(t.TempDir(), "policy.db")
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilled$")
	cmd.Env = append(os.Environ(), "TULLE_KILLED="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	acknowledged := 0
	for acknowledged < 60 {
		if _, err := fmt.Fscanf(out, "%d\n", &acknowledged); err != nil {
			t.Fatal(err)
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for { // what it said before it died
		var n int
		if _, err := fmt.Fscanf(out, "%d\n", &n); err != nil {
			break
		}
		acknowledged = n
	}
	_ = cmd.Wait() // killed
	s, err := sqlite.Open(t.Context(), path, options())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	state, err := s.State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if int(state.Revision) < acknowledged || len(state.Policies) != 10*int(state.Revision) {
		t.Errorf("revision %d with %d policies; acknowledged were %d writes of 10", state.Revision, len(state.Policies), acknowledged)
	}
	changes, err := s.Changes(t.Context(), 0, 1<<20)
	if err != nil || len(changes) != int(state.Revision) {
		t.Errorf("%d changes at revision %d, %v", len(changes), state.Revision, err)
	}
}

func writeForEver(path string) {
	ctx := context.Background()
	s, err := sqlite.Open(ctx, path, options())
	for n := 0; err == nil; n++ {
		ps := many(10)
		for i := range ps {
			ps[i].Ports = policy.PortRange{Start: uint16(n + 1), End: uint16(n + 1)}
		}
		if _, err = s.AddPolicies(ctx, ps); err == nil {
			fmt.Println(n + 1)
		}
	}
	fmt.Println(err)
	os.Exit(1)
}

func TestOptionsThatMakeNoSense(t *testing.T) {
	for name, change := range map[string]func(*sqlite.Options){
		"no network":   func(o *sqlite.Options) { o.Lease.Network = netip.Prefix{} },
		"no lifetime":  func(o *sqlite.Options) { o.Lease.Lifetime = 0 },
		"lease of /16": func(o *sqlite.Options) { o.Lease.Bits = 16 },
	} {
		o := options()
		change(&o)
		path := filepath.Join(t.TempDir(), "policy.db")
		if _, err := sqlite.Open(t.Context(), path, o); err == nil {
			t.Errorf("%s: opened", name)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: left a file: %v", name, err)
		}
	}
}

// TestPathWithSpecialCharacters: the path is part of a URI on its way to SQLite.
func TestPathWithSpecialCharacters(t *testing.T) {
	path := filepath.Join(t.TempDir(), "50% of a?b#c & d.db")
	s, err := sqlite.Open(t.Context(), path, options())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 || info.Size() == 0 {
		t.Errorf("mode %s, %d bytes", info.Mode(), info.Size())
	}
}
