package control

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tulle/policy/api"
)

// daemon is a Handler that records what reached it.
type daemon struct {
	mu       sync.Mutex
	attached map[string]AttachRequest
	detached []Detach
	refuse   error
	inode    uint64 // of the last device received
	loud     bool

	block chan struct{} // if not nil, Attach waits for it or for ctx
	began chan struct{}
	ended chan error
}

func (d *daemon) Attach(ctx context.Context, r AttachRequest) (Attached, error) {
	if d.block != nil {
		d.began <- struct{}{}
		select {
		case <-d.block:
		case <-ctx.Done():
			d.ended <- ctx.Err()
			return Attached{}, Errorf(CodeUnavailable, "gone")
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refuse != nil {
		return Attached{}, d.refuse
	}
	d.inode = inode(int(r.TUN.Fd()))
	d.attached[r.Container] = r
	return Attached{MTU: 1450, Incarnation: 7}, nil
}

func (d *daemon) Detach(_ context.Context, _ Peer, r Detach) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.detached = append(d.detached, r)
	return nil
}

func (d *daemon) GC(_ context.Context, p Peer, g GC) (Collected, error) {
	return Collected{Containers: []string{g.Network, fmt.Sprint(p.UID), g.Keep[0]}}, nil
}

func (d *daemon) List(context.Context) ([]Endpoint, error) {
	return []Endpoint{{Container: "c1"}}, nil
}

func (d *daemon) Status(context.Context) (Status, error) { return Status{Cell: "cell-1"}, nil }

func (d *daemon) got(container string) AttachRequest {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.attached[container]
}

func (d *daemon) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.attached)
}

func inode(fd int) uint64 {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0
	}
	return st.Ino
}

func openFiles(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// serve starts a server whose goroutines have all ended when stop returns.
func serve(t *testing.T, d *daemon, a *Authorizer) (path string, stop func()) {
	t.Helper()
	if d.attached == nil {
		d.attached = map[string]AttachRequest{}
	}
	path = filepath.Join(t.TempDir(), "run", "celld.sock")
	l, err := Listen(path, 0o660)
	if err != nil {
		t.Fatal(err)
	}
	return path, serveOn(t, l, d, a)
}

// serveOn is serve on a listener.
func serveOn(t *testing.T, l net.Listener, d *daemon, a *Authorizer) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	s := &Server{Handler: d, Authorizer: a, Log: slog.New(slog.DiscardHandler)}
	go func() { ended <- s.Serve(ctx, l) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// failing is a listener of which the first accepts end with these errors.
type failing struct {
	net.Listener
	errs []unix.Errno
}

func (f *failing) Accept() (net.Conn, error) {
	if len(f.errs) == 0 {
		return f.Listener.Accept()
	}
	err := f.errs[0]
	f.errs = f.errs[1:]
	return nil, &net.OpError{Op: "accept", Net: "unix", Err: os.NewSyscallError("accept4", err)}
}

// A daemon that is out of descriptors or of memory for a moment answers behind it.
func TestServeThroughErrorsThatPass(t *testing.T) {
	path := filepath.Join(t.TempDir(), "celld.sock")
	l, err := Listen(path, 0o660)
	if err != nil {
		t.Fatal(err)
	}
	stop := serveOn(t, &failing{l, []unix.Errno{unix.EMFILE, unix.ENOMEM, unix.ENOBUFS}}, &daemon{}, everyone())
	if _, err := dial(t, path).List(t.Context()); err != nil {
		t.Error(err)
	}
	stop()
}

func everyone() *Authorizer { return NewAuthorizer(uint32(os.Getuid()), nil) }

func dial(t *testing.T, path string) *Client {
	t.Helper()
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func file(t *testing.T) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "device")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func attach(container string, l Lifeline) Attach {
	return Attach{Container: container, App: api.AppRef{Name: "web", Space: "dev", Org: "acme"}, Device: "eth0", Lifeline: l}
}

func codeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

func TestRequestsReachTheHandler(t *testing.T) {
	d := &daemon{}
	path, _ := serve(t, d, everyone())
	c := dial(t, path)
	ctx := t.Context()
	tun, pidfd := file(t), file(t)
	got, err := c.Attach(ctx, attach("c1", LifelinePidfd), tun, pidfd)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Attached{MTU: 1450, Incarnation: 7}); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	r := d.got("c1")
	d.mu.Lock()
	if want := inode(int(tun.Fd())); d.inode != want {
		t.Errorf("the handler got inode %d as its device, sent was %d", d.inode, want)
	}
	d.mu.Unlock()
	if r.Pidfd == nil {
		t.Error("no pidfd reached the handler")
	}
	if want := (Peer{UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), PID: int32(os.Getpid())}); r.Peer != want {
		t.Errorf("peer is %+v, want %+v", r.Peer, want)
	}
	if err := c.Detach(ctx, Detach{Container: "c1"}); err != nil {
		t.Error(err)
	}
	if got, err := c.GC(ctx, GC{Network: "n", Keep: []string{"c2"}}); err != nil || !slices.Equal(got.Containers, []string{"n", fmt.Sprint(os.Getuid()), "c2"}) {
		t.Errorf("GC: %v, %v", got, err)
	}
	if list, err := c.List(ctx); err != nil || len(list) != 1 || list[0].Container != "c1" {
		t.Errorf("List: %v, %v", list, err)
	}
	if s, err := c.Status(ctx); err != nil || s.Cell != "cell-1" {
		t.Errorf("Status: %v, %v", s, err)
	}
}

func TestRefusalsKeepTheirCode(t *testing.T) {
	d := &daemon{refuse: Errorf(CodePoolEmpty, "no address is free")}
	path, _ := serve(t, d, everyone())
	c := dial(t, path)
	_, err := c.Attach(t.Context(), attach("c1", LifelineNone), file(t), nil)
	if codeOf(err) != CodePoolEmpty || err.Error() != "no address is free" {
		t.Errorf("got %v, want the handler's refusal", err)
	}
	d.mu.Lock()
	d.refuse = errors.New("secret: disk on fire")
	d.mu.Unlock()
	_, err = c.Attach(t.Context(), attach("c1", LifelineNone), file(t), nil)
	if codeOf(err) != CodeInternal || err.Error() == "secret: disk on fire" {
		t.Errorf("got %v, want an internal error without its cause", err)
	}
}

func TestEndOfTheConnection(t *testing.T) {
	t.Run("of the client is told", func(t *testing.T) {
		d := &daemon{}
		path, _ := serve(t, d, everyone())
		c := dial(t, path)
		if _, err := c.Attach(t.Context(), attach("c1", LifelineConnection), file(t), nil); err != nil {
			t.Fatal(err)
		}
		gone := d.got("c1").Gone
		select {
		case <-gone:
			t.Fatal("gone while the connection is open")
		default:
		}
		_ = c.Close()
		<-gone
	})
	t.Run("of the server is not", func(t *testing.T) {
		d := &daemon{}
		path, stop := serve(t, d, everyone())
		c := dial(t, path)
		if _, err := c.Attach(t.Context(), attach("c1", LifelineConnection), file(t), nil); err != nil {
			t.Fatal(err)
		}
		stop()
		<-c.Done()
		select {
		case <-d.got("c1").Gone:
			t.Error("the server's stop was taken for the container's end")
		default:
		}
	})
	t.Run("ends a handler at work", func(t *testing.T) {
		d := &daemon{block: make(chan struct{}), began: make(chan struct{}), ended: make(chan error, 1)}
		path, _ := serve(t, d, everyone())
		c := dial(t, path)
		ctx, cancel := context.WithCancel(t.Context())
		failed := make(chan error, 1)
		tun := file(t)
		go func() {
			_, err := c.Attach(ctx, attach("c1", LifelineNone), tun, nil)
			failed <- err
		}()
		<-d.began
		cancel()
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Errorf("client: %v", err)
		}
		if err := <-d.ended; !errors.Is(err, context.Canceled) {
			t.Errorf("handler: %v", err)
		}
	})
}

// raw sends bytes and descriptors as they are and returns the answer's code.
func raw(t *testing.T, path string, b []byte, fds ...int) Code {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	uc := c.(*net.UnixConn)
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := uc.WriteMsgUnix(b, oob, nil); err != nil {
		t.Fatal(err)
	}
	_ = uc.CloseWrite()
	_ = uc.SetReadDeadline(time.Now().Add(10 * time.Second))
	answer, _, err := ReadMessage(uc, MaxAnswer, 0, nil)
	if err != nil {
		if !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("answer: %v", err)
		}
		return ""
	}
	return codeOf(decodeAnswer("raw", answer, nil))
}

func framed(payload string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(payload)))
	return append(b, payload...)
}

// Whatever a local process sends, no descriptor of it stays and the server
// answers the next one.
func TestGarbageLeavesNothing(t *testing.T) {
	d := &daemon{}
	path, stop := serve(t, d, everyone())
	f := file(t)
	fd := int(f.Fd())
	const good = `{"op":"attach","body":{"container":"c1","app":{"guid":"g"},"device":"eth0","lifeline":"none"}}`
	many := make([]int, 200)
	for i := range many {
		many[i] = fd
	}
	cases := []struct {
		name string
		send []byte
		fds  []int
		want Code
	}{
		{"nothing", []byte{0}, nil, ""},
		{"part of a length", []byte{0, 0}, []int{fd}, ""},
		{"length without payload", []byte{0, 0, 0, 9}, []int{fd}, ""},
		{"part of a payload", framed(good)[:30], []int{fd}, ""},
		{"huge length", []byte{0xff, 0xff, 0xff, 0xff}, []int{fd}, CodeBadRequest},
		{"empty payload", framed(""), []int{fd}, CodeBadRequest},
		{"no JSON", framed("hello"), []int{fd}, CodeBadRequest},
		{"JSON of another kind", framed("[1,2]"), []int{fd}, CodeBadRequest},
		{"unknown operation", framed(`{"op":"explode"}`), []int{fd}, CodeBadRequest},
		{"list with a descriptor", framed(`{"op":"list"}`), []int{fd}, CodeBadRequest},
		{"attach without one", framed(good), nil, CodeBadRequest},
		{"attach with two", framed(good), []int{fd, fd}, CodeBadRequest},
		{"three descriptors", framed(good), []int{fd, fd, fd}, CodeBadRequest},
		{"200 descriptors", framed(good), many, CodeBadRequest},
		{"attach without body", framed(`{"op":"attach"}`), []int{fd}, CodeBadRequest},
		{"good", framed(good), []int{fd}, ""},
	}
	before := openFiles(t)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := raw(t, path, c.send, c.fds...); got != c.want {
				t.Errorf("answer %q, want %q", got, c.want)
			}
		})
	}
	// Descriptors beside the second half of a message never arrive.
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	msg := framed(`{"op":"list"}`)
	if _, err := c.Write(msg[:6]); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.WriteMsgUnix(msg[6:], unix.UnixRights(fd, fd), nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ReadMessage(c, MaxAnswer, 0, nil); err != nil {
		t.Error(err)
	}
	_ = c.Close()
	if n := d.count(); n != 1 {
		t.Errorf("%d attaches reached the handler, want the good one", n)
	}
	stop()
	if after := openFiles(t); after != before-1 { // less the listener
		t.Errorf("%d descriptors open, want %d", after, before-1)
	}
}

func TestDialSaysWhatKeepsUs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "celld.sock")
	nobody := func() {
		t.Helper()
		_, err := Dial(path)
		if want := "no cell daemon listens on " + path + ": start tulle-celld, or name its socket"; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
	}
	nobody()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	t.Cleanup(func() { _ = l.Close() })
	if err := os.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if os.Getuid() == 0 { // the thread opens files as an ordinary user, and ends with its goroutine
			runtime.LockOSThread()
			if _, err := unix.SetfsuidRetUid(65534); err != nil {
				t.Error(err)
			}
		}
		_, err := Dial(path)
		if want := "may not open " + path + ": run as the daemon's user, or have its operator open the socket to you"; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("another's socket: %v; want %q", err, want)
		}
	}()
	<-done
	_ = l.Close()
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	nobody() // the socket is there, its daemon has gone
}

func TestUnknownUIDMayNothing(t *testing.T) {
	d := &daemon{}
	// A daemon of another user, and root held to one app.
	uid := uint32(os.Getuid())
	path, _ := serve(t, d, NewAuthorizer(uid+1, []Grant{{UID: uid, Apps: []string{"db"}}}))
	c := dial(t, path)
	if _, err := c.Attach(t.Context(), attach("c1", LifelineNone), file(t), nil); codeOf(err) != CodeNotAllowed {
		t.Errorf("attach: %v", err)
	}
	if d.count() != 0 {
		t.Error("the handler was asked")
	}
	if _, err := c.List(t.Context()); err != nil {
		t.Errorf("list of one who may attach db: %v", err)
	}
}
