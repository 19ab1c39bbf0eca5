// Command tulle-celld is the cell daemon: it moves packets between this host's
// containers and those of other cells, as far as policies allow. It needs no
// privilege and gives up what it has before it reads anything; a command that asks
// a running daemon keeps it, to open its socket.
//
// main maps an error to an exit code; run is the whole program over its
// arguments and streams. The commands: the daemon (the default), join, status, list,
// rotate-key, traffic-log, release, version, and holder, which the daemon starts itself.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"tulle/overlay"
	"tulle/overlay/control"
	"tulle/overlay/holder"
	"tulle/overlay/ready"
	"tulle/policy/api"
)

// garbage is how much of it may wait, in percent of what is in use, unless GOGC says
// otherwise: packets leave none, and a table of 100,000 policies is a lot to have nearly
// twice when it changes.
const garbage = 60

func main() {
	if !asks(os.Args[1:]) {
		if err := harden(); err != nil {
			fmt.Fprintf(os.Stderr, "tulle-celld: %v\n", err)
			os.Exit(1)
		}
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(garbage)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is the program. It returns the exit status: 0, 1 for an error, 2 for a
// command line that makes no sense.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := command()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() == 0 && !asks(args) {
		err = fmt.Errorf("%w; tulle-celld gives up root's rights over other users' files: run it as the one whose this is", err)
	}
	fmt.Fprintf(stderr, "tulle-celld: %v\n", err)
	if errors.As(err, new(*usageError)) {
		return 2
	}
	return 1
}

// asks tells a command that only asks a running daemon. Without root's rights root
// could not open the socket of another user's daemon, which serves root.
func asks(args []string) bool {
	c, _, err := command().Find(args)
	return err == nil && c.Annotations[asking] != ""
}

// asking annotates what asks a running daemon.
const asking = "asking"

// usageError is a command line that makes no sense.
type usageError struct{ error }

func (e *usageError) Unwrap() error { return e.error }

func exactly(n int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		switch {
		case len(args) > n:
			return &usageError{fmt.Errorf("%s does not take %q", c.CommandPath(), args[n])}
		case len(args) < n:
			return &usageError{fmt.Errorf("usage: %s", c.UseLine())}
		}
		return nil
	}
}

func command() *cobra.Command {
	var configPath string
	root := &cobra.Command{
		Use:           "tulle-celld --config FILE",
		Short:         "The cell daemon of a Tulle network",
		Args:          exactly(0),
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(c *cobra.Command, _ []string) error {
			if configPath == "" {
				return &usageError{errors.New("--config FILE is missing")}
			}
			return serve(c.Context(), configPath, c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	root.PersistentFlags().StringVar(&configPath, "config", "", "the configuration file")
	root.AddCommand(joinCommand(), statusCommand(&configPath), listCommand(&configPath), holderCommand(), versionCommand(), releaseCommand(&configPath), rotateKeyCommand(&configPath), trafficLogCommand(&configPath))
	return root
}

func serve(ctx context.Context, path string, stdout, stderr io.Writer) error {
	c, err := loadConfig(path)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: c.LogLevel}))
	cfg := c.daemon()
	cfg.Log = log
	// A life that follows another is no news to whoever waits for the start.
	var once sync.Once
	cfg.Ready = func(r overlay.Ready) {
		once.Do(func() {
			if err := json.NewEncoder(stdout).Encode(r); err != nil {
				log.Warn("ready line", "err", err)
			}
		})
	}
	cfg.Processors = runtime.GOMAXPROCS(0)
	if cfg.Waits, err = waits(cfg.Processors); err != nil {
		return err
	}
	if err := os.MkdirAll(c.StateDir, 0o700); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	if cfg.Holder, err = keeper(c.StateDir, log); err != nil {
		return err
	}
	d, err := overlay.New(cfg)
	if err != nil {
		return errors.Join(err, cfg.Holder.Close())
	}
	return d.Run(ctx)
}

// waits is where readers wait. Those that are seated keep a processor of Go's each,
// the sockets' included, so there are as many more of these.
func waits(processors int) (*ready.Set, error) {
	const sockets = 1 // that of one tunnel mode; the other's waits as a device does
	seats := min(processors, 16)
	set, err := ready.New(seats, sockets)
	if err != nil {
		return nil, err
	}
	runtime.GOMAXPROCS(processors + seats + sockets)
	return set, nil
}

// keeper is where duplicates of descriptors are: with the service manager, if
// it keeps any for us, else in a process of our own.
func keeper(stateDir string, log *slog.Logger) (holder.Keeper, error) {
	if holder.UnderSystemd(os.Getenv) {
		return holder.OpenSystemd(os.Getenv)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("holder: %w", err)
	}
	return holder.OpenProcess(holder.Options{Dir: stateDir, Command: []string{self, "holder"}, Log: log})
}

func holderCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "holder STATE_DIR",
		Short:  "Keep descriptors beside the daemon, which starts this itself",
		Hidden: true,
		Args:   exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			return holder.Run(c.Context(), args[0], os.NewFile(3, "ready"))
		},
	}
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			version := "unknown"
			if info, ok := debug.ReadBuildInfo(); ok {
				version = info.Main.Version
			}
			_, err := fmt.Fprintln(c.OutOrStdout(), version)
			return err
		},
	}
}

// asker adds the flags of a command that asks a running daemon.
func asker(config *string, c *cobra.Command, ask func(context.Context, *control.Client, io.Writer, bool) error) *cobra.Command {
	return following(config, c, func(ctx context.Context, client *control.Client, w io.Writer, asJSON bool) error {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		return ask(ctx, client, w, asJSON)
	})
}

// following is asker of what may take its time.
func following(config *string, c *cobra.Command, ask func(context.Context, *control.Client, io.Writer, bool) error) *cobra.Command {
	var socket, output string
	c.Args = exactly(0)
	c.Annotations = map[string]string{asking: "yes"}
	c.Flags().StringVar(&socket, "socket", "", "the daemon's socket (default: that of --config, else the usual one)")
	c.Flags().StringVar(&output, "output", "text", "text or json")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if output != "text" && output != "json" {
			return &usageError{fmt.Errorf("--output %s: must be text or json", output)}
		}
		if socket == "" && *config != "" {
			loaded, err := loadConfig(*config)
			if err != nil {
				return err
			}
			socket = loaded.Socket
		}
		if socket == "" {
			socket = control.DefaultSocket()
		}
		client, err := control.Dial(socket)
		if err != nil {
			return err
		}
		defer client.Close()
		return ask(c.Context(), client, c.OutOrStdout(), output == "json")
	}
	return c
}

func indented(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func statusCommand(config *string) *cobra.Command {
	c := &cobra.Command{Use: "status", Short: "Show the daemon's state"}
	return asker(config, c, func(ctx context.Context, client *control.Client, w io.Writer, asJSON bool) error {
		s, err := client.Status(ctx)
		if err != nil {
			return err
		}
		if asJSON {
			return indented(w, s)
		}
		tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		if len(s.Plain) > 0 {
			fmt.Fprintf(tw, "PLAIN TEXT\tthese peers have mode vxlan, their traffic can be read and forged: %s\n", strings.Join(s.Plain, ", "))
		}
		if s.Mode == api.ModeVXLAN {
			fmt.Fprintf(tw, "PLAIN TEXT\tthis cell has mode vxlan: all that it sends to peers can be read and forged\n")
		}
		if len(s.NoSecret) > 0 {
			fmt.Fprintf(tw, "NO POST-QUANTUM SECRET\twith these peers, which make none: %s\n", strings.Join(s.NoSecret, ", "))
		}
		fmt.Fprintf(tw, "mode\t%s\n", s.Mode)
		if s.Mode == api.ModeWireGuard {
			fmt.Fprintf(tw, "wireguard\t%v\nkey\t%s\ntunnel\t%v\n", s.WireGuard, s.Key, s.Tunnel)
		}
		if s.PostQuantum != "" {
			fmt.Fprintf(tw, "post-quantum secrets\t%s\n", s.PostQuantum)
		}
		if s.Rotation != "" {
			fmt.Fprintf(tw, "key rotation\t%s\n", s.Rotation)
		}
		fmt.Fprintf(tw, "cell\t%s\nlease\t%v\nunderlay\t%v\npid\t%d\nconnected\t%t\nrevision\t%d\npolicies\t%d\nflows\t%d\nendpoints\t%d here, %d elsewhere\npeers\t%d\n",
			s.Cell, s.Lease, s.Underlay, s.PID, s.Connected, s.Revision, s.Policies, s.Flows, len(s.Endpoints), len(s.Remote), len(s.Peers))
		return tw.Flush()
	})
}

func listCommand(config *string) *cobra.Command {
	c := &cobra.Command{Use: "list", Short: "List this cell's containers"}
	return asker(config, c, func(ctx context.Context, client *control.Client, w io.Writer, asJSON bool) error {
		list, err := client.List(ctx)
		if err != nil {
			return err
		}
		if asJSON {
			return indented(w, list)
		}
		tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(tw, "container\taddress\tapp\ttag\tlifeline\tuid\t")
		for _, e := range list {
			app, note := e.AppName, ""
			if app == "" {
				app = string(e.App)
			}
			switch {
			case e.Waiting:
				note = "waits for its attacher"
			case e.Lifeline == control.LifelineNone:
				note = "ends by detach alone"
			}
			fmt.Fprintf(tw, "%s\t%v\t%s\t%v\t%s\t%d\t%s\n", e.Container, e.Address, app, e.Tag, e.Lifeline, e.UID, note)
		}
		return tw.Flush()
	})
}

func releaseCommand(config *string) *cobra.Command {
	return &cobra.Command{
		Use:   "release --config FILE",
		Short: "Give back the lease of a cell that has stopped for good",
		Args:  exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if *config == "" {
				return &usageError{errors.New("--config FILE is missing")}
			}
			loaded, err := loadConfig(*config)
			if err != nil {
				return err
			}
			cfg := loaded.daemon()
			cfg.Log = slog.New(slog.NewTextHandler(c.ErrOrStderr(), &slog.HandlerOptions{Level: loaded.LogLevel}))
			subnet, err := overlay.Release(c.Context(), cfg)
			switch {
			case err != nil:
				return err
			case !subnet.IsValid():
				fmt.Fprintln(c.OutOrStdout(), "the cell has no lease")
			default:
				fmt.Fprintf(c.OutOrStdout(), "%s is given back\n", subnet)
			}
			return nil
		},
	}
}
