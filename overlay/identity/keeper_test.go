package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"tulle/policy/api"
)

const day = 24 * time.Hour

// host is a fake clock and a fake server: time moves when a test says so.
type host struct {
	mu     sync.Mutex
	boot   time.Duration
	wall   time.Time
	bootID string
	down   bool
	signed int
	server time.Time // the server's own clock
}

func newHost() *host {
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	return &host{boot: time.Hour, wall: now, server: now, bootID: "one"}
}

func (h *host) Boot() time.Duration     { h.mu.Lock(); defer h.mu.Unlock(); return h.boot }
func (h *host) Wall() time.Time         { h.mu.Lock(); defer h.mu.Unlock(); return h.wall }
func (h *host) BootID() (string, error) { h.mu.Lock(); defer h.mu.Unlock(); return h.bootID, nil }

func (h *host) Certificate(_ context.Context, r api.CertificateRequest) (api.Certificate, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.down {
		return api.Certificate{}, errors.New("no server")
	}
	h.signed++
	return api.Certificate{Certificate: fmt.Sprintf("%s %d", r.Container, h.signed), Trust: "trust", NotAfter: h.server.Add(day), Seconds: int64(day / time.Second)}, nil
}

func (h *host) Trust(context.Context) (api.Trust, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.down {
		return api.Trust{}, errors.New("no server")
	}
	return api.Trust{Trust: "trust"}, nil
}

func (h *host) pass(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.boot, h.wall, h.server = h.boot+d, h.wall.Add(d), h.server.Add(d)
}

func (h *host) set(f func()) { h.mu.Lock(); defer h.mu.Unlock(); f() }

func (h *host) count() int { h.mu.Lock(); defer h.mu.Unlock(); return h.signed }

// rig is a Keeper on that host.
type rig struct {
	*testing.T
	*Keeper
	h    *host
	dir  string
	tick chan time.Time
	stop func()
}

func newRig(t *testing.T, h *host, dir string) *rig {
	t.Helper()
	r := &rig{T: t, h: h, dir: dir, tick: make(chan time.Time)}
	var err error
	if r.Keeper, err = Open(Options{Dir: dir, Clock: h, Issuer: h, Log: slog.New(slog.DiscardHandler), Tick: r.tick}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); r.Keeper.Run(ctx) }()
	r.stop = sync.OnceFunc(func() { cancel(); <-ended })
	t.Cleanup(r.stop)
	return r
}

// get is Get as a handshake does it.
func (r *rig) get(fresh bool) string {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), 10*time.Second)
	defer cancel()
	p, err := r.Get(ctx, "c", fresh)
	if err != nil {
		r.Fatal(err)
	}
	return p.Certificate
}

// look ticks: when the second is taken, the first has been dealt with.
func (r *rig) look() {
	r.tick <- time.Time{}
	r.tick <- time.Time{}
}

// until waits for what other goroutines are at.
func (r *rig) until(what string, ok func() bool) {
	r.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			r.Fatalf("%s did not come", what)
		}
	}
}

func TestRenewedAtHalf(t *testing.T) {
	r := newRig(t, newHost(), t.TempDir())
	r.Add("c")
	if got := r.get(false); got != "c 1" {
		t.Fatalf("first certificate %q", got)
	}
	r.h.pass(10 * time.Hour)
	r.look()
	if n := r.h.count(); n != 1 {
		t.Errorf("%d certificates after ten hours, want the first alone", n)
	}
	r.h.pass(2 * time.Hour)
	r.look()
	r.until("the second certificate", func() bool { return r.get(false) == "c 2" })
	if renewed, failed := r.Counts(); renewed != 2 || failed != 0 {
		t.Errorf("counted %d and %d failures", renewed, failed)
	}
	// Another name for the app.
	r.Renew("c")
	r.until("the third certificate", func() bool { return r.get(false) == "c 3" })
	r.Remove("c")
	if _, err := r.Get(t.Context(), "c", false); !errors.Is(err, ErrUnknown) {
		t.Errorf("a container that is gone: %v", err)
	}
	if files, _ := filepath.Glob(filepath.Join(r.dir, "c*")); len(files) != 0 {
		t.Errorf("left behind: %v", files)
	}
}

// The server is away from just before the renewal on, for an hour: no handshake
// waits or fails, and then the renewal is made up for.
// What a certificate says has changed while the server is away: it is made anew when
// the server is back, however young it is.
func TestRenewalIsNotForgottenWithoutServer(t *testing.T) {
	r := newRig(t, newHost(), t.TempDir())
	r.Add("c")
	if got := r.get(false); got != "c 1" {
		t.Fatalf("first certificate %q", got)
	}
	r.h.set(func() { r.h.down = true })
	r.Renew("c")
	r.until("a failure", func() bool { _, failed := r.Counts(); return failed == 1 })
	r.h.set(func() { r.h.down = false })
	r.h.pass(time.Minute)
	r.look()
	r.until("the second certificate", func() bool { return r.get(false) == "c 2" })
	r.look()
	if n := r.h.count(); n != 2 {
		t.Errorf("%d certificates, want 2", n)
	}
}

func TestAnHourWithoutServer(t *testing.T) {
	r := newRig(t, newHost(), t.TempDir())
	r.Add("c")
	r.get(false)
	r.h.set(func() { r.h.down = true })
	r.h.pass(11*time.Hour + 59*time.Minute)
	for range 60 {
		r.h.pass(time.Minute)
		r.look()
		if got := r.get(true); got != "c 1" {
			t.Fatalf("while the server is away: %q", got)
		}
	}
	r.until("a failure", func() bool { _, failed := r.Counts(); return failed > 0 })
	r.h.set(func() { r.h.down = false })
	r.h.pass(time.Minute)
	r.look()
	r.until("the renewal", func() bool { return r.get(false) == "c 2" })
}

// A wall clock that jumps by days, either way, refuses nobody and asks the server
// no more than once in ten minutes.
func TestWallClockJumps(t *testing.T) {
	for _, jump := range []time.Duration{72 * time.Hour, -72 * time.Hour} {
		r := newRig(t, newHost(), t.TempDir())
		r.Add("c")
		r.get(false)
		r.h.set(func() { r.h.wall = r.h.wall.Add(jump) })
		for range 9 {
			r.h.pass(time.Minute)
			r.look()
			if got := r.get(true); !strings.HasPrefix(got, "c ") {
				t.Errorf("after a jump of %v: %q", jump, got)
			}
		}
		r.stop()
		want := 1 // the boot clock says that it is young
		if jump > 0 {
			want = 2
		}
		if n := r.h.count(); n > want {
			t.Errorf("after a jump of %v: %d certificates, want %d at most", jump, n, want)
		}
	}
}

// The host sleeps for 16 h, and no timer moves. Whatever the certificate's age
// was, the first handshake after the wake-up gets one that is valid.
func TestSuspend(t *testing.T) {
	for _, age := range []time.Duration{0, 7 * time.Hour, 8*time.Hour + time.Minute, 11*time.Hour + 20*time.Minute} {
		r := newRig(t, newHost(), t.TempDir())
		r.Add("c")
		r.get(false)
		r.h.pass(age)
		r.look()
		r.h.pass(16 * time.Hour)
		got := r.get(true)
		if want := map[bool]string{true: "c 2", false: "c 1"}[age+16*time.Hour >= day]; got != want {
			t.Errorf("asleep at the age of %v: the first handshake gets %q, want %q", age, got, want)
		}
		r.look()
		r.until("the renewal", func() bool { return r.get(false) == "c 2" })
		r.stop()
	}
}

// A start of the daemon, without a server, has what the one before had; a boot of
// the host has it too, and renews as soon as it can.
func TestStartsWithoutServer(t *testing.T) {
	h, dir := newHost(), t.TempDir()
	r := newRig(t, h, dir)
	r.Add("c")
	r.Add("gone")
	r.get(false)
	r.until("the other's", func() bool { return h.count() == 2 })
	before := r.get(false)
	r.until("both files", func() bool { f, _ := filepath.Glob(filepath.Join(dir, "*"+suffix)); return len(f) == 2 })
	r.stop()
	h.set(func() { h.down = true })
	if err := os.WriteFile(filepath.Join(dir, "bad"+suffix), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}

	r = newRig(t, h, dir)
	r.Add("c")
	r.Prune()
	if got := r.get(false); got != before {
		t.Errorf("after a restart: %q, want %q", got, before)
	}
	if trust, _ := r.Trust(); trust != "trust" {
		t.Errorf("trust %q", trust)
	}
	if f, _ := filepath.Glob(filepath.Join(dir, "gone*")); len(f) != 0 {
		t.Error("the key of a container that is gone stayed")
	}
	if info, err := os.Stat(filepath.Join(dir, "c"+suffix)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v", info, err)
	}
	r.stop()

	h.set(func() { h.bootID, h.boot, h.down = "two", 0, false })
	r = newRig(t, h, dir)
	r.Add("c")
	r.until("the renewal after a boot", func() bool { return r.get(false) == "c 3" })
}

func TestBundleFollowsTrust(t *testing.T) {
	r := newRig(t, newHost(), t.TempDir())
	path := filepath.Join(t.TempDir(), "trust", "ca-certificates.crt")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); r.KeepBundle(ctx, path) }()
	defer func() { cancel(); <-ended }()
	r.until("the bundle", func() bool {
		b, err := os.ReadFile(path)
		return err == nil && strings.HasSuffix(string(b), "trust")
	})
	system, err := SystemRoots()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil || !strings.HasPrefix(string(b), string(system)) {
		t.Errorf("the system's roots are not in it: %v", err)
	}
	if got := string(Bundle([]byte("a"), "b\n")); got != "a\nb\n" {
		t.Errorf("joined %q", got)
	}
}

// A bundle that could not be written for a moment is there when it can, though what is
// trusted does not change.
func TestBundleThatCannotBeWritten(t *testing.T) {
	tried := make(chan struct{}, 1)
	k, err := Open(Options{Dir: t.TempDir(), Clock: newHost(), Issuer: newHost(), Log: slog.New(told(tried))})
	if err != nil {
		t.Fatal(err)
	}
	k.bundleAgain = time.Millisecond
	dir := filepath.Join(t.TempDir(), "trust")
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // in the directory's place
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var ended sync.WaitGroup
	defer ended.Wait()
	defer cancel()
	ended.Go(func() { k.Run(ctx) })
	ended.Go(func() { k.KeepBundle(ctx, filepath.Join(dir, "bundle")) })
	select {
	case <-tried:
	case <-time.After(10 * time.Second):
		t.Fatal("nothing is said of a bundle that cannot be written")
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	(&rig{T: t}).until("the bundle", func() bool {
		b, err := os.ReadFile(filepath.Join(dir, "bundle"))
		return err == nil && strings.HasSuffix(string(b), "trust")
	})
}

// told is a log that says that there is something in it.
type told chan struct{}

func (c told) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelError }
func (c told) WithAttrs([]slog.Attr) slog.Handler               { return c }
func (c told) WithGroup(string) slog.Handler                    { return c }
func (c told) Handle(context.Context, slog.Record) error {
	select {
	case c <- struct{}{}:
	default:
	}
	return nil
}
