package holder

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// store plays the service manager: it reads notifications as sd_notify(3) and
// systemd.exec(5) say.
type store struct {
	c     *net.UnixConn
	mu    sync.Mutex
	files map[string]int
	log   []string
}

func newStore(t *testing.T) (*store, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	s := &store{c: c, files: map[string]int{}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.run()
	}()
	t.Cleanup(func() {
		_ = c.Close()
		<-done
		for _, fd := range s.files {
			_ = unix.Close(fd)
		}
	})
	return s, path
}

func (s *store) run() {
	b, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	for {
		n, oobn, _, _, err := s.c.ReadMsgUnix(b, oob)
		if err != nil {
			return
		}
		fd := -1
		if cs, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(cs) == 1 {
			if fds, err := unix.ParseUnixRights(&cs[0]); err == nil {
				fd = fds[0]
			}
		}
		s.handle(string(bytes.TrimSpace(b[:n])), fd)
	}
}

func (s *store) handle(text string, fd int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, text)
	vars := map[string]string{}
	for line := range strings.Lines(text) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		vars[k] = v
	}
	name := vars["FDNAME"]
	switch {
	case vars["FDSTORE"] == "1":
		s.files[name] = fd
	case vars["FDSTOREREMOVE"] == "1":
		_ = unix.Close(s.files[name])
		delete(s.files, name)
	case vars["BARRIER"] == "1":
		_ = unix.Close(fd)
	}
}

func (s *store) kept() (names []string, fds []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, fd := range s.files {
		names, fds = append(names, name), append(fds, fd)
	}
	return names, fds
}

func env(vars map[string]string) func(string) string {
	return func(k string) string { return vars[k] }
}

func TestSystemdStore(t *testing.T) {
	st, addr := newStore(t)
	s, err := OpenSystemd(env(map[string]string{"NOTIFY_SOCKET": addr, "FDSTORE": "10"}))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.Take(); err != nil || len(got) != 0 {
		t.Errorf("first start has %v, %v", got, err)
	}
	f := temp(t, "one")
	if err := s.Put("c1", f); err != nil {
		t.Fatal(err)
	}
	// Put has waited for the store.
	names, fds := st.kept()
	if len(names) != 1 || names[0] != "tulle-c1" {
		t.Fatalf("the store has %v", names)
	}
	kept, err := unix.FcntlInt(uintptr(fds[0]), unix.F_DUPFD_CLOEXEC, 100)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put("c1", temp(t, "again")); err != nil {
		t.Fatal(err)
	}
	if names, _ := st.kept(); len(names) != 1 || s.Len() != 1 {
		t.Errorf("put twice: the store has %v, we count %d", names, s.Len())
	}
	if err := s.Put("c2", f); err != nil {
		t.Fatal(err)
	}
	if err := s.Drop("c1"); err != nil {
		t.Fatal(err)
	}
	if err := s.barrier(); err != nil {
		t.Fatal(err)
	}
	if names, _ := st.kept(); len(names) != 1 || names[0] != "tulle-c2" {
		t.Errorf("after a drop the store has %v", names)
	}

	// The next start gets them passed, beside a socket that is not ours.
	other, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, kept+1)
	if err != nil || other != kept+1 {
		t.Fatalf("descriptor %d, %v", other, err)
	}
	next := &Systemd{addr: addr, files: map[string]*os.File{}}
	next.inherit(kept, 2, []string{"tulle-c1", "stored"})
	got, err := next.Take()
	if err != nil || len(got) != 1 || text(t, got["c1"]) != "one" {
		t.Errorf("taken over: %v, %v", got, err)
	}
	closeAll(got)
	if got, err = next.Take(); err != nil || len(got) != 1 { // a second life of the daemon
		t.Errorf("taken over again: %v, %v", got, err)
	}
	closeAll(got)
	_ = next.Close()
	_ = unix.Close(other)
}

func TestUnderSystemd(t *testing.T) {
	cases := []struct {
		vars map[string]string
		want bool
	}{
		{nil, false},
		{map[string]string{"NOTIFY_SOCKET": "/n"}, false}, // a unit without a store
		{map[string]string{"NOTIFY_SOCKET": "/n", "FDSTORE": "64"}, true},
		{map[string]string{"NOTIFY_SOCKET": "/n", "LISTEN_FDS": "2"}, true},
		{map[string]string{"LISTEN_FDS": "2"}, false},
	}
	for _, c := range cases {
		if got := UnderSystemd(env(c.vars)); got != c.want {
			t.Errorf("%v: %t", c.vars, got)
		}
	}
	// Descriptors passed to another process of the unit are not ours.
	s, err := OpenSystemd(env(map[string]string{"NOTIFY_SOCKET": "/n", "LISTEN_FDS": "2", "LISTEN_PID": strconv.Itoa(os.Getpid() + 1), "LISTEN_FDNAMES": "tulle-a:tulle-b"}))
	if err != nil || s.Len() != 0 {
		t.Errorf("took over %d, %v", s.Len(), err)
	}
}
