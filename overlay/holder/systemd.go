package holder

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// listenFD is the first descriptor that a service manager passes,
// SD_LISTEN_FDS_START of sd_listen_fds(3).
const listenFD = 3

// storePrefix tells our descriptors from sockets the unit may pass as well.
const storePrefix = "tulle-"

// Systemd is the Keeper in the service manager's descriptor store
// (FileDescriptorStoreMax= of systemd.service(5)).
type Systemd struct {
	addr string

	mu    sync.Mutex // guards files, and is held over a request
	files map[string]*os.File
}

// UnderSystemd reports whether the process was started by a service manager
// that keeps descriptors for it. systemd says so in FDSTORE since version 254;
// for an older one the unit sets it (Environment=FDSTORE=1024), and after a
// restart LISTEN_FDS is there anyway.
func UnderSystemd(getenv func(string) string) bool {
	return getenv("NOTIFY_SOCKET") != "" && (getenv("FDSTORE") != "" || getenv("LISTEN_FDS") != "")
}

// OpenSystemd takes over what the service manager passed. Call it once, before
// anything opens descriptors.
func OpenSystemd(getenv func(string) string) (*Systemd, error) {
	s := &Systemd{addr: getenv("NOTIFY_SOCKET"), files: map[string]*os.File{}}
	if s.addr == "" {
		return nil, errors.New("descriptor store: NOTIFY_SOCKET is not set")
	}
	pid, n := getenv("LISTEN_PID"), getenv("LISTEN_FDS")
	if n == "" || pid != strconv.Itoa(os.Getpid()) {
		return s, nil
	}
	count, err := strconv.Atoi(n)
	if err != nil || count < 0 {
		return nil, fmt.Errorf("descriptor store: LISTEN_FDS is %q", n)
	}
	s.inherit(listenFD, count, strings.Split(getenv("LISTEN_FDNAMES"), ":"))
	return s, nil
}

// inherit takes count descriptors from first on. Those that are not ours are
// only kept from what the daemon starts.
func (s *Systemd) inherit(first, count int, names []string) {
	for i := range count {
		fd := first + i
		unix.CloseOnExec(fd)
		if i >= len(names) {
			continue
		}
		name, ours := strings.CutPrefix(names[i], storePrefix)
		if !ours || s.files[name] != nil {
			continue
		}
		f := os.NewFile(uintptr(fd), name)
		if d, err := Duplicate(f); err == nil { // out of Go's poller
			_ = f.Close()
			f = d
		}
		s.files[name] = f
	}
}

// Take implements Keeper.
func (s *Systemd) Take() (map[string]*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	got := map[string]*os.File{}
	for name, f := range s.files {
		d, err := Duplicate(f)
		if err != nil {
			closeAll(got)
			return nil, fmt.Errorf("descriptor store: %w", err)
		}
		got[name] = d
	}
	return got, nil
}

// Put implements Keeper.
func (s *Systemd) Put(name string, f *os.File) error {
	if err := checkName(name); err != nil {
		return fmt.Errorf("descriptor store: %w", err)
	}
	d, err := Duplicate(f)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.put(name, d); err != nil {
		return errors.Join(err, d.Close())
	}
	s.files[name] = d
	return s.barrier()
}

func (s *Systemd) put(name string, f *os.File) error {
	if old := s.files[name]; old != nil {
		// The store would keep both.
		if err := s.notify("FDSTOREREMOVE=1\nFDNAME="+storePrefix+name, nil); err != nil {
			return err
		}
		delete(s.files, name)
		_ = old.Close()
	}
	// FDPOLL=0: a device whose carrier goes would otherwise be dropped.
	return s.notify("FDSTORE=1\nFDPOLL=0\nFDNAME="+storePrefix+name, f)
}

// Drop implements Keeper.
func (s *Systemd) Drop(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.files[name]
	if f == nil {
		return nil
	}
	delete(s.files, name)
	return errors.Join(s.notify("FDSTOREREMOVE=1\nFDNAME="+storePrefix+name, nil), f.Close())
}

// Len implements Keeper.
func (s *Systemd) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.files)
}

// Close implements Keeper.
func (s *Systemd) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	closeAll(s.files)
	clear(s.files)
	return nil
}

// barrier returns when the service manager has read everything sent so far: it
// closes the pipe's end that came with BARRIER=1 (sd_notify_barrier(3)).
func (s *Systemd) barrier() error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("descriptor store: %w", err)
	}
	defer r.Close()
	err = s.notify("BARRIER=1", w)
	_ = w.Close()
	if err != nil {
		return err
	}
	_ = r.SetReadDeadline(time.Now().Add(answerTimeout))
	if n, err := r.Read(make([]byte, 1)); n == 0 && os.IsTimeout(err) {
		return errors.New("descriptor store: the service manager does not answer")
	}
	return nil
}

// notify sends one datagram. Go's own connected unixgram sockets refuse
// descriptors, so this is the bare call.
func (s *Systemd) notify(text string, f *os.File) error {
	name := s.addr
	if strings.HasPrefix(name, "@") {
		name = "\x00" + name[1:]
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("descriptor store: %w", err)
	}
	defer unix.Close(fd)
	to := &unix.SockaddrUnix{Name: name}
	if f == nil {
		err = unix.Sendmsg(fd, []byte(text), nil, to, 0)
	} else {
		var raw rawConn
		if raw, err = f.SyscallConn(); err == nil {
			cerr := raw.Control(func(h uintptr) { err = unix.Sendmsg(fd, []byte(text), unix.UnixRights(int(h)), to, 0) })
			err = errors.Join(err, cerr)
		}
	}
	if err != nil {
		return fmt.Errorf("descriptor store: %w", &net.OpError{Op: "notify", Net: "unixgram", Err: err})
	}
	return nil
}

type rawConn interface {
	Control(func(fd uintptr)) error
}
