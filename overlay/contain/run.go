package contain

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/google/uuid"

	"tulle/overlay/control"
	"tulle/policy/api"
)

// Nobody is the uid and gid of a command started by root, unless another is named.
const Nobody = 65534

// Device is the name of the command's network device.
const Device = "eth0"

// StatusOwn is the status Run returns beside an error of its own, as other
// container tools do; a command that cannot be executed gives StatusNotExecutable
// or StatusNotFound, as in a shell.
const (
	StatusOwn           = 125
	StatusNotExecutable = 126
	StatusNotFound      = 127
)

// ErrRefused: the daemon came back and does not take the endpoint again.
var ErrRefused = errors.New("the cell daemon refuses the container")

// Options say what to run, and for whom.
type Options struct {
	App       api.AppRef
	Instance  string
	Container string // unique on the cell; made up when empty

	// User and Group of the command when root runs it; 0 stands for Nobody, and
	// a User without a Group has the group of the same number. An ordinary
	// user's command runs as that user, and both stay 0.
	User, Group uint32

	Socket string // of the daemon; control.DefaultSocket() when empty

	// MaskDirs are hidden from the command beside the socket's own directory and
	// those that the daemon names. What does not exist is skipped.
	MaskDirs []string

	// TLS is to be terminated on port 61443, by the cell's proxy; nil: it is not.
	TLS *control.TLS

	Command []string
	Dir     string   // working directory; the caller's when empty
	Env     []string // the caller's when nil

	// Streams as in os/exec: nil is the null device, an *os.File is handed over
	// as it is. When Stdin is the caller's terminal, the command gets it as the
	// foreground.
	Stdin          io.Reader
	Stdout, Stderr io.Writer

	// Signals are passed to the command; see NotifySignals. May be nil.
	Signals <-chan os.Signal

	// Attached, if not nil, is called once, before the command starts.
	Attached func(control.Attached)

	// Grace is what the command has between SIGTERM and SIGKILL after the
	// context has ended; 10 s when 0.
	Grace time.Duration

	Log *slog.Logger // state changes only; nil for none
}

// NotifySignals delivers to the channel what a terminal's user or a service
// manager sends to a process and means for its command. Signals that were
// ignored when this process started (nohup) stay so.
func NotifySignals() (signals <-chan os.Signal, stop func()) {
	c := make(chan os.Signal, 16)
	for _, s := range passed {
		if !signal.Ignored(s) {
			signal.Notify(c, s)
		}
	}
	return c, func() { signal.Stop(c) }
}

var passed = []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT,
	syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH}

// Run runs the command in a container of its own and returns its exit status
// (128+n when signal n killed it) once it and everything it left running are
// gone and the endpoint is detached. The error is nil whenever the command ran
// to its end; otherwise it says what was missing and what mends it.
//
// When ctx ends, the command gets SIGTERM and, after Grace, SIGKILL.
//
// Run may be called from any goroutine and several times at once. It marks
// every descriptor of this process close-on-exec.
func Run(ctx context.Context, o Options) (status int, err error) {
	if err := o.complete(); err != nil {
		return StatusOwn, err
	}
	who, err := o.identity()
	if err != nil {
		return StatusOwn, err
	}
	client, err := control.Dial(o.Socket)
	if err != nil {
		return StatusOwn, err
	}
	s := &supervisor{o: &o, who: who}
	return s.run(ctx, client)
}

func (o *Options) complete() error {
	if len(o.Command) == 0 {
		return errors.New("no command to run")
	}
	if o.Socket == "" {
		o.Socket = control.DefaultSocket()
	}
	if err := maskable(filepath.Dir(o.Socket)); err != nil {
		return err
	}
	if o.Container == "" {
		o.Container = "run-" + uuid.NewString()
	}
	if o.Dir == "" {
		dir, err := os.Getwd()
		if err != nil {
			return fmt.Errorf("working directory: %w", err)
		}
		o.Dir = dir
	}
	if o.Env == nil {
		o.Env = os.Environ()
	}
	if o.Grace == 0 {
		o.Grace = 10 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// maskable refuses a socket in a directory that others use too: it has to be
// hidden whole, since a file mounted over the socket alone would be gone when
// the daemon makes it anew.
func maskable(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return nil // dialling says it better
	}
	if info.Mode()&os.ModeSticky != 0 || info.Mode().Perm()&0o002 != 0 {
		return fmt.Errorf("the daemon's socket lies in %s, which others write to and which therefore cannot be hidden from the command; give the daemon a socket in a directory of its own", dir)
	}
	return nil
}
