package natlog

import (
	"encoding/json"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tulle/overlay/egress"
)

var (
	noon   = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	remote = netip.MustParseAddrPort("203.0.113.1:443")
)

func source(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port)
}

func open(t *testing.T, dir, run string, bytes int64) *Log {
	t.Helper()
	l, err := Open(Options{Dir: dir, Bytes: bytes}, run)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func begin(l *Log, container string, port uint16, at time.Time) uint64 {
	return l.Begin(egress.Mapping{At: at, Protocol: "tcp", Source: source(port), Remote: remote, Identity: egress.Identity{Container: container, App: "app-" + container, Org: "org"}})
}

func who(t *testing.T, l *Log, port uint16, at time.Time) []string {
	t.Helper()
	found, err := l.Who(source(port), at)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, f := range found {
		if f.Source != source(port) || f.Remote != remote || f.Protocol != "tcp" || f.Who.App != "app-"+f.Who.Container {
			t.Errorf("found %+v", f)
		}
		names = append(names, f.Who.Container)
	}
	return names
}

func expect(t *testing.T, got []string, want ...string) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("found %q, want %q", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("found %q, want %q", got, want)
		}
	}
}

// Lines are what encoding/json would write.
func TestLines(t *testing.T) {
	l := open(t, t.TempDir(), "run", 1<<20)
	at := time.Date(2026, 3, 1, 12, 0, 0, 123000, time.UTC)
	six := netip.MustParseAddrPort("[2001:db8::1]:443")
	for _, e := range []entry{
		{Run: "abc", ID: 7, End: at},
		{Run: "abc", ID: 8, Begin: at, Protocol: "tcp", Source: source(1), Remote: six, Who: egress.Identity{Container: "c", Address: six.Addr()}},
		{Run: "abc", ID: 9, Begin: at, Protocol: "icmp", Source: netip.AddrPortFrom(six.Addr(), 0), Remote: remote,
			Who: egress.Identity{Container: "<\"\u2028\x01>", App: "a", AppName: "n", Space: "s", Org: "ö"}},
		{Run: "abc", ID: 10, Begin: at, Who: egress.Identity{Container: "c", Address: six.Addr()}},
	} {
		want, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := l.appendLocked(nil, &e); err != nil || string(got) != string(want)+"\n" {
			t.Errorf("line %s, %v, want %s", got, err, want)
		}
	}
}

func TestWho(t *testing.T) {
	l := open(t, t.TempDir(), "1", 0)
	a := begin(l, "a", 40000, noon)
	begin(l, "other", 40001, noon)
	l.End(a, noon.Add(10*time.Second))
	begin(l, "b", 40000, noon.Add(20*time.Second))
	expect(t, who(t, l, 40000, noon.Add(-time.Second)))
	expect(t, who(t, l, 40000, noon), "a")
	expect(t, who(t, l, 40000, noon.Add(5*time.Second)), "a")
	expect(t, who(t, l, 40000, noon.Add(15*time.Second)))
	expect(t, who(t, l, 40000, noon.Add(time.Hour)), "b")
	expect(t, who(t, l, 40000, time.Time{}), "a", "b")
	expect(t, who(t, l, 40002, time.Time{}))
}

func TestNextLifeOfTheDaemon(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, "1", 0)
	begin(l, "a", 40000, noon)
	if _, err := l.Who(source(1), noon); err != nil { // flushes, as the second does
		t.Fatal(err)
	}
	// The daemon is killed in the middle of a line.
	f, err := os.OpenFile(filepath.Join(dir, "nat.log"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString(`{"run":"1","id":2,"begin":"2026`)
	f.Close()
	l = open(t, dir, "2", 0)
	begin(l, "b", 40000, noon.Add(time.Minute))
	found, err := l.Who(source(40000), noon.Add(time.Hour))
	if err != nil || len(found) != 2 || !found[0].Lost || found[1].Lost || found[1].Who.Container != "b" {
		t.Errorf("found %+v, %v, want a, whose end nobody saw, and b", found, err)
	}
}

// A daemon that is killed closes nothing and flushes nothing.
func TestKilledDaemonForgetsNothing(t *testing.T) {
	dir := t.TempDir()
	begin(open(t, dir, "one", 0), "a", 1000, noon)
	if got := who(t, open(t, dir, "two", 0), 1000, noon); len(got) != 1 || got[0] != "a" {
		t.Errorf("after a kill: %v", got)
	}
}

func TestSizeIsBoundedAndTheLivingStay(t *testing.T) {
	dir := t.TempDir()
	const bytes = 64 << 10
	l := open(t, dir, "1", bytes)
	begin(l, "old", 40000, noon)
	for i := range 2000 {
		l.End(begin(l, "busy", 50000, noon.Add(time.Duration(i)*time.Second)), noon.Add(time.Duration(i)*time.Second))
	}
	if err := l.Err(); err != nil {
		t.Fatal(err)
	}
	expect(t, who(t, l, 40000, noon.Add(time.Hour)), "old")
	if n := len(who(t, l, 50000, time.Time{})); n < 50 || n > 500 {
		t.Errorf("%d of 2000 are remembered, want what fits", n)
	}
	expect(t, who(t, l, 50000, noon.Add(1999*time.Second)), "busy")
	var size int64
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		st, err := f.Info()
		if err != nil {
			t.Fatal(err)
		}
		size += st.Size()
	}
	if size > bytes+4096 {
		t.Errorf("the files have %d bytes, want about %d", size, bytes)
	}
}

// full takes all room from the log's file, until what it returns is called.
func full(t *testing.T, l *Log) (again func()) {
	t.Helper()
	fd, err := unix.MemfdCreate("full", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := unix.Ftruncate(fd, l.size); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Seek(fd, l.size, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_GROW); err != nil {
		t.Fatal(err)
	}
	swap := func(fd int) {
		if err := unix.Dup3(fd, int(l.f.Fd()), unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
	}
	disk, err := unix.FcntlInt(l.f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	swap(fd)
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		swap(disk)
		_ = unix.Close(disk)
	}
}

// A disk that was full for a moment leaves a log that goes on, and that has whoever
// lives since then.
func TestDiskThatWasFull(t *testing.T) {
	l := open(t, t.TempDir(), "1", 1<<20)
	begin(l, "a", 1, noon)
	again := full(t, l)
	lives, gone := begin(l, "b", 2, noon), begin(l, "c", 3, noon)
	l.End(gone, noon)
	if l.Err() == nil {
		t.Fatal("a full disk took the line")
	}
	if _, err := l.Who(source(1), noon); err == nil {
		t.Error("an answer while nobody knows what is missing")
	}
	again()
	_ = l.Err()
	expect(t, who(t, l, 1, noon), "a")
	expect(t, who(t, l, 2, noon), "b")
	begin(l, "d", 4, noon)
	l.End(lives, noon.Add(time.Minute))
	if err := l.Err(); err != nil {
		t.Errorf("an error that is over: %v", err)
	}
	l.mu.Lock()
	st, err := os.Stat(l.path)
	believed := l.size - int64(l.w.Buffered())
	l.mu.Unlock()
	if err != nil || st.Size() != believed {
		t.Errorf("%v, %v; the log believes that it has %d bytes", st, err, believed)
	}
	expect(t, who(t, l, 2, noon.Add(2*time.Minute)))
	expect(t, who(t, l, 4, noon), "d")
}

func TestUnwritable(t *testing.T) {
	if _, err := Open(Options{Dir: filepath.Join(t.TempDir(), "gone")}, "1"); err == nil {
		t.Error("opened in a directory that is not there")
	}
}
