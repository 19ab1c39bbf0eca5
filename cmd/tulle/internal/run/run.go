// Package run is the command `tulle run`: flags in front of overlay/contain.
//
// The program's main must call contain.Reexec first thing, and map an error
// that has an ExitCode method to that status, silently: the command inside has
// already said what it had to say.
package run

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/user"
	"strconv"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"tulle/overlay/contain"
	"tulle/overlay/control"
	"tulle/policy"
	"tulle/policy/api"
)

// Status is the error of a command that ran and ended with a status other
// than 0.
type Status int

func (s Status) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// ExitCode is the status to exit with.
func (s Status) ExitCode() int { return int(s) }

// refusal is an error of `tulle run` itself, with the status that tells it from
// the command's.
type refusal struct {
	error
	status int
}

func (r refusal) Unwrap() error { return r.error }
func (r refusal) ExitCode() int { return r.status }

// Command is `tulle run`.
func Command() *cobra.Command {
	var (
		app, space, org  string
		instance, name   string
		socket, as, dir  string
		verbose, showing bool
		noTLS            bool
		tls              control.TLS
		identity         string
	)
	cmd := &cobra.Command{
		Use:   "run --app NAME|GUID [flags] -- COMMAND [ARGUMENT...]",
		Short: "Run a command in a container network of its own",
		Long: `Runs a command with one network device, eth0, that the cell daemon carries. The
command reaches other containers where a policy of its app allows it, and they
reach it the same way. It has no capability, cannot reach the daemon, and runs
as the calling user (started by root: as nobody, or as --user).

Other containers also reach it by TLS on port 61443, which the cell's proxy terminates
and carries to --tls-port; a policy for port 61443 is needed, as for any.

Unix sockets in the file system (D-Bus, docker.sock) are no network and so
outside of any policy.`,
		Example: `  tulle run --app web -- python3 -m http.server 8080
  tulle run --app web --instance 1 -- sh`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			uid, gid, err := lookup(as)
			if err != nil {
				return refusal{err, contain.StatusOwn}
			}
			level := slog.LevelWarn
			if verbose {
				level = slog.LevelInfo
			}
			o := contain.Options{
				App:       reference(app, space, org),
				Instance:  instance,
				Container: name,
				User:      uid,
				Group:     gid,
				Socket:    socket,
				Command:   args,
				Dir:       dir,
				Stdin:     os.Stdin,
				Stdout:    os.Stdout,
				Stderr:    os.Stderr,
				Log:       slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: level})),
			}
			if !noTLS {
				tls.Identity = control.Identity(identity)
				o.TLS = &tls
			}
			if showing {
				// The flag is the root command's; without a root there is only text.
				output, _ := cmd.Flags().GetString("output")
				o.Attached = func(a control.Attached) { show(cmd.ErrOrStderr(), a, output == "json") }
			}
			signals, stop := contain.NotifySignals()
			defer stop()
			o.Signals = signals
			// Signals are the command's: the context must not end with them.
			status, err := contain.Run(context.WithoutCancel(cmd.Context()), o)
			switch {
			case err != nil:
				return refusal{err, status}
			case status != 0:
				return Status(status)
			}
			return nil
		},
	}
	// Flags behind the command's name are the command's.
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().StringVar(&app, "app", "", "app to run as, by name or GUID (required)")
	cmd.Flags().StringVar(&space, "space", cmp.Or(os.Getenv("TULLE_SPACE"), "default"), "space of the app, if it is given by name")
	cmd.Flags().StringVar(&org, "org", cmp.Or(os.Getenv("TULLE_ORG"), "default"), "org of the app, if it is given by name")
	cmd.Flags().StringVar(&instance, "instance", "", "number of the instance, shown in lists")
	cmd.Flags().StringVar(&name, "name", "", "name of the container, unique on its cell (default: made up)")
	cmd.Flags().StringVar(&socket, "socket", control.DefaultSocket(), "socket of the cell daemon")
	cmd.Flags().StringVar(&as, "user", "", "as root: user to run the command as, by name or number, not 0 (default: nobody)")
	cmd.Flags().StringVar(&dir, "dir", "", "working directory (default: this one)")
	cmd.Flags().BoolVar(&noTLS, "no-tls", false, "leave port 61443 to the command")
	cmd.Flags().Uint16Var(&tls.Backend, "tls-port", control.DefaultTLSBackend, "port of the app that TLS on 61443 is carried to")
	cmd.Flags().BoolVar(&tls.ClientCertificate, "tls-client-certificate", false, "let in only callers that show their own app's certificate on 61443")
	cmd.Flags().StringVar(&identity, "tls-identity", "", `tell the app who calls on 61443: "proxy" (PROXY protocol v2) or "xfcc" (X-Forwarded-Client-Cert, HTTP/1.1 alone)`)
	cmd.Flags().BoolVar(&showing, "show-address", false, "write the container's address and the app's GUID to standard error")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "log what happens to the container")
	if err := cmd.MarkFlagRequired("app"); err != nil {
		panic(err) // the flag is three lines above
	}
	return cmd
}

// show tells who the container is, on standard error: standard output is the
// command's.
func show(w io.Writer, a control.Attached, asJSON bool) {
	if !asJSON {
		fmt.Fprintf(w, "%s %s\n", a.Address.Addr(), a.App)
		return
	}
	// An output that is gone stops no command.
	_ = json.NewEncoder(w).Encode(struct {
		Address netip.Addr   `json:"address"`
		App     policy.AppID `json:"app"`
	}{a.Address.Addr(), a.App})
}

// reference takes what looks like a GUID for one: apps are not named so.
func reference(app, space, org string) api.AppRef {
	if _, err := uuid.Parse(app); err == nil {
		return api.AppRef{GUID: policy.AppID(app)}
	}
	return api.AppRef{Name: app, Space: space, Org: org}
}

// lookup finds the user to run as; none given is 0, 0.
func lookup(name string) (uid, gid uint32, err error) {
	if name == "" {
		return 0, 0, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		u, err = user.LookupId(name)
	}
	if err != nil {
		// A number needs no entry in the user database.
		n, nerr := strconv.ParseUint(name, 10, 32)
		if nerr != nil {
			return 0, 0, fmt.Errorf("--user %s: %w", name, err)
		}
		uid, gid, err = uint32(n), uint32(n), nil
	} else {
		uid, gid, err = ids(u)
	}
	if err == nil && uid == 0 {
		err = fmt.Errorf("--user %s: a container never runs as the host's root", name)
	}
	return uid, gid, err
}

func ids(u *user.User) (uid, gid uint32, err error) {
	a, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return 0, 0, fmt.Errorf("uid of %s: %w", u.Username, err)
	}
	b, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return 0, 0, fmt.Errorf("gid of %s: %w", u.Username, err)
	}
	return uint32(a), uint32(b), nil
}
