package demo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Nobody is the user that the server and the daemons run as when root starts
// them: the kernel's overflow uid, which owns nothing.
const Nobody = 65534

// Org and Space are where a world's apps live.
const (
	Org   = "demo"
	Space = "demo"
)

// startPatience is how long a program may take until it is ready.
const startPatience = 20 * time.Second

// Options say how a world is made. The zero value is a good one.
type Options struct {
	Dir     string       // made under the system's temporary directory if empty; removed on Close
	BinDir  string       // where tulle, tulle-celld and tulle-policy-server are; default: beside the running program
	User    uint32       // as root: uid and gid of server and daemons; 0 is Nobody
	Network netip.Prefix // default: the first that clashes with nothing here
	Mode    string       // tunnel mode of cells that do not set one; default: wireguard
	Log     *slog.Logger
}

// World is a policy server, cells and containers on this host. Its methods are
// for one goroutine, those of what it returns for any.
type World struct {
	Dir     string
	Network netip.Prefix
	Server  *Server // nil before StartServer

	bin       string
	root      bool
	uid       uint32
	mode      string
	log       *slog.Logger
	patience  time.Duration // what a process has to end in order
	plain     *starter      // for `tulle run`
	confined  *starter      // for daemons
	cells     []*Cell
	proxies   []*Proxy
	instances []*Instance
	netns     *os.File // where what is started next runs; nil: where this program runs

	mu         sync.Mutex
	processes  []*process          // guarded by mu: all that were started
	namespaces map[string]*os.File // guarded by mu: network namespaces that containers were seen in, pinned
	closed     bool
}

// NewWorld makes the directory and nothing else. Close it in any case.
//
// The program becomes its descendants' subreaper: what loses its parent
// (a container's init, a daemon's holder) becomes its child, so that Close can
// find it.
func NewWorld(o Options) (*World, error) {
	bin, err := binDir(o.BinDir)
	if err != nil {
		return nil, err
	}
	w := &World{
		Network:    o.Network,
		bin:        bin,
		root:       os.Geteuid() == 0,
		uid:        uint32(os.Geteuid()),
		mode:       cmp.Or(o.Mode, "wireguard"),
		log:        o.Log,
		patience:   stopPatience,
		namespaces: make(map[string]*os.File),
	}
	if w.root {
		w.uid = Nobody
		if o.User != 0 {
			w.uid = o.User
		}
	}
	if !w.Network.IsValid() {
		if w.Network, err = FreeNetwork(); err != nil {
			return nil, err
		}
	}
	if w.log == nil {
		w.log = slog.New(slog.DiscardHandler)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become the subreaper: %w", err)
	}
	if w.Dir, err = makeDir(o.Dir); err != nil {
		return nil, err
	}
	w.plain = newStarter(func() {})
	w.confined = newStarter(confine)
	if err := w.prepare(); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

func makeDir(dir string) (string, error) {
	if dir == "" {
		dir, err := os.MkdirTemp("", "tulle-demo-")
		if err != nil {
			return "", fmt.Errorf("make a temporary directory (TMPDIR says where, --dir makes another): %w", err)
		}
		return dir, nil
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	// Mkdir, not MkdirAll: Close removes it, so it must be the world's own.
	if err := os.Mkdir(dir, 0o711); err != nil {
		return "", fmt.Errorf("make the directory, which must not be there yet: %w", err)
	}
	return dir, nil
}

// prepare makes what the user of the daemons must be able to pass through.
func (w *World) prepare() error {
	if err := os.Chmod(w.Dir, 0o711); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(w.Dir, "logs"), 0o755); err != nil {
		return err
	}
	return w.reachableBinaries()
}

// ownDir makes a directory for the user of the daemons, whose absolute path it
// returns.
func (w *World) ownDir(name string) (string, error) {
	dir := filepath.Join(w.Dir, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	if w.root {
		if err := os.Chown(dir, int(w.uid), int(w.uid)); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// Binaries are what a world runs.
var Binaries = []string{"tulle", "tulle-policy-server", "tulle-celld", "tulle-tlsproxy"}

func binDir(dir string) (string, error) {
	if dir == "" {
		self, err := os.Executable()
		if err != nil {
			return "", err
		}
		dir = filepath.Dir(self)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for _, b := range Binaries {
		if _, err := os.Stat(filepath.Join(dir, b)); err != nil {
			return "", fmt.Errorf("find the program %s (make build puts it into bin/): %w", b, err)
		}
	}
	return dir, nil
}

// reachableBinaries copies the programs into the world when the daemons' user
// could not start them where they are: a checkout under /root is root's alone.
func (w *World) reachableBinaries() error {
	if !w.root || reachable(w.bin) {
		return nil
	}
	to := filepath.Join(w.Dir, "bin")
	if err := os.Mkdir(to, 0o755); err != nil {
		return err
	}
	for _, b := range Binaries {
		if err := copyFile(filepath.Join(to, b), filepath.Join(w.bin, b)); err != nil {
			return err
		}
	}
	w.bin = to
	return nil
}

// reachable reports whether everybody may pass through dir and all above it.
func reachable(dir string) bool {
	for ; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm()&0o001 == 0 {
			return false
		}
		if dir == filepath.Dir(dir) {
			return true
		}
	}
}

func copyFile(to, from string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}

// In has what is started from now on run in the network namespace ns, which
// stays the caller's, with nil in this program's own. A process that is started
// again stays where it was.
func (w *World) In(ns *os.File) { w.netns = ns }

func (w *World) program(name string) string { return filepath.Join(w.bin, name) }

func (w *World) track(p *process) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.processes = append(w.processes, p)
}

// runTool runs a command of the server's to its end, as the daemons' user.
func (w *World) runTool(ctx context.Context, name string, args ...string) error {
	p, err := w.start(program{name: name, path: w.program("tulle-policy-server"), args: args, daemon: true})
	if err != nil {
		return err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return errors.Join(ctx.Err(), p.kill())
	}
	if p.waitErr != nil {
		return p.ended()
	}
	return nil
}

// Close ends everything in order, containers first, removes the directory, and
// returns an error that names whatever is left. It is idempotent.
func (w *World) Close() error {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return nil
	}
	w.closed = true
	w.mu.Unlock()
	var errs []error
	for _, i := range w.instances {
		errs = append(errs, i.Stop())
	}
	for _, p := range w.proxies {
		errs = append(errs, p.Stop())
	}
	for _, c := range slices.Backward(w.cells) {
		errs = append(errs, c.Stop())
	}
	if w.Server != nil {
		errs = append(errs, w.Server.Stop())
	}
	// Whatever else was started, such as one that was never ready.
	for _, p := range w.processes {
		errs = append(errs, p.terminate(w.patience))
	}
	errs = append(errs, w.endStragglers())
	w.plain.close()
	w.confined.close()
	errs = append(errs, os.RemoveAll(w.Dir))
	errs = append(errs, w.residue())
	return errors.Join(errs...)
}
