package holder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tulle/overlay/control"
)

// SocketName is the holder's socket in the state directory.
const SocketName = "holder.sock"

// firstDaemon is how long a new holder waits for whoever started it.
const firstDaemon = 10 * time.Second

// acceptAgain is how long it waits when it could not accept.
const acceptAgain = 100 * time.Millisecond

// Run is the holder process: it listens in dir, says so on ready ("ok", or why
// not) and closes it, and returns when ctx ends, when told to stop, or when it
// is empty and no daemon is connected.
func Run(ctx context.Context, dir string, ready io.WriteCloser) error {
	l, err := control.Listen(filepath.Join(dir, SocketName), 0o600)
	text := "ok"
	if err != nil {
		text = err.Error()
	}
	_, werr := io.WriteString(ready, text)
	if err := errors.Join(err, werr, ready.Close()); err != nil {
		if l != nil {
			err = errors.Join(err, l.Close())
		}
		return err
	}
	return serve(ctx, l, firstDaemon)
}

// server is the holder's state.
type server struct {
	stop context.CancelFunc
	idle *time.Timer // runs from the start until the first daemon

	mu    sync.Mutex // guards the fields below
	files map[string]*os.File
	conns int
}

func serve(ctx context.Context, l net.Listener, first time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &server{stop: cancel, files: map[string]*os.File{}, idle: time.AfterFunc(first, cancel)}
	defer s.idle.Stop()
	unhook := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer unhook()
	defer l.Close() // again: that one may still be about to remove the file
	var wg sync.WaitGroup
	defer func() {
		cancel()
		wg.Wait()
		closeAll(s.files)
	}()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = c.Close()
			}
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("accept: %w", err)
		}
		if err != nil {
			// Out of descriptors, most likely. That passes; what is held here would not
			// come back.
			select {
			case <-time.After(acceptAgain):
			case <-ctx.Done():
			}
			continue
		}
		uc, ok := c.(*net.UnixConn)
		if !ok || !trusted(uc) {
			_ = c.Close()
			continue
		}
		s.idle.Stop()
		s.count(1)
		wg.Go(func() {
			defer s.count(-1)
			defer uc.Close()
			unhook := context.AfterFunc(ctx, func() { _ = uc.Close() })
			defer unhook()
			s.converse(uc)
		})
	}
}

// trusted: the file's mode keeps others out already; this holds where it was
// changed.
func trusted(c *net.UnixConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil || cerr != nil {
		return false
	}
	return cred.Uid == 0 || cred.Uid == uint32(os.Geteuid())
}

// count ends the holder when the last daemon leaves nothing to hold.
func (s *server) count(d int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns += d
	if s.conns == 0 && len(s.files) == 0 {
		s.stop()
	}
}

func (s *server) converse(c *net.UnixConn) {
	for {
		b, files, err := control.ReadMessage(c, maxRequest, 1, nil)
		if err != nil {
			return
		}
		r, err := decodeRequest(b, len(files))
		if err != nil {
			control.CloseAll(files)
			if send(c, answer{Error: err.Error()}) != nil {
				return
			}
			continue
		}
		switch r.Op {
		case opPut:
			s.set(r.Name, files[0])
			err = send(c, answer{})
		case opDrop:
			s.set(r.Name, nil)
			err = send(c, answer{})
		case opTake:
			err = s.take(c)
		case opStop:
			_ = send(c, answer{})
			s.stop()
			return
		}
		if err != nil {
			return
		}
	}
}

// set keeps f, or nothing, under name and closes what was there.
func (s *server) set(name string, f *os.File) {
	s.mu.Lock()
	old := s.files[name]
	if f == nil {
		delete(s.files, name)
	} else {
		s.files[name] = f
	}
	s.mu.Unlock()
	if old != nil {
		_ = old.Close()
	}
}

// take sends everything, in chunks. The lock is held throughout, so that no
// descriptor is closed while it is sent; the one daemon there is waits for the
// answer anyway.
func (s *server) take(c *net.UnixConn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := slices.Sorted(maps.Keys(s.files))
	for {
		n := min(chunk, len(names))
		files := make([]*os.File, n)
		for i, name := range names[:n] {
			files[i] = s.files[name]
		}
		a := answer{Names: names[:n], More: len(names) > n}
		if err := send(c, a, files...); err != nil {
			return err
		}
		if names = names[n:]; len(names) == 0 {
			return nil
		}
	}
}
