package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"tulle/overlay/control"
)

const (
	devCell      = "laptop"
	devPatience  = 30 * time.Second // for a program to start or to end
	serverBinary = "tulle-policy-server"
	cellBinary   = "tulle-celld"
	proxyBinary  = "tulle-tlsproxy"
)

// devOptions is where `tulle dev` keeps what it makes, and the addresses of it.
type devOptions struct {
	dir, bin  string
	external  string // host:port of the policy server's API
	socket    string // of the cell daemon
	underlay  netip.Addr
	network   netip.Prefix
	announced func(devWorld) error
}

// devWorld is what runs: how to reach it.
type devWorld struct {
	Server        string `json:"server"`
	TokenFile     string `json:"token_file"`
	Socket        string `json:"socket"`
	Directory     string `json:"directory"`
	ServerMetrics string `json:"server_metrics,omitempty"` // host:port; "": it serves none
	CellMetrics   string `json:"cell_metrics,omitempty"`
	ProxyMetrics  string `json:"proxy_metrics,omitempty"`
}

// dev is `tulle dev`.
func (p *program) dev() *cobra.Command {
	var o devOptions
	var underlay, network string
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run a policy server and one cell in the foreground, for a laptop",
		Long: `Starts a policy server, one cell daemon and the proxy that terminates TLS for its
containers, says how to use them and stops them on Ctrl-C. What they know stays in a directory and is there the next time.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := exactArgs(cmd, args); err != nil {
				return err
			}
			var err error
			if o.underlay, err = netip.ParseAddr(underlay); err != nil {
				return usageError(cmd, "--underlay: %v", err)
			}
			if o.network, err = netip.ParsePrefix(network); err != nil {
				return usageError(cmd, "--network: %v", err)
			}
			if o.dir == "" {
				if o.dir, err = p.devDirectory(); err != nil {
					return err
				}
			}
			if o.bin == "" {
				self, err := os.Executable()
				if err != nil {
					return fmt.Errorf("find the programs beside this one: %w", err)
				}
				o.bin = filepath.Dir(self)
			}
			o.announced = func(w devWorld) error {
				return p.print(w, func(out io.Writer) { devText(out, w) })
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
			defer stop()
			return runDev(ctx, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.dir, "dir", "", "directory for all state (default: tulle/dev in $XDG_STATE_HOME or ~/.local/state)")
	f.StringVar(&o.bin, "bin", "", "where the programs are (default: beside this one)")
	f.StringVar(&o.external, "listen", "127.0.0.1:4002", "address of the policy server's API")
	f.StringVar(&o.socket, "socket", control.DefaultSocket(), "socket of the cell daemon")
	f.StringVar(&underlay, "underlay", "127.0.0.1", "address that other cells would send to")
	f.StringVar(&network, "network", "10.255.0.0/16", "overlay network")
	return cmd
}

// devDirectory is the XDG base directory specification's place for state.
func (p *program) devDirectory() (string, error) {
	state := p.env("XDG_STATE_HOME")
	if !filepath.IsAbs(state) {
		home := p.env("HOME")
		if !filepath.IsAbs(home) {
			return "", errors.New("neither XDG_STATE_HOME nor HOME names a directory: give --dir")
		}
		state = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(state, "tulle", "dev"), nil
}

func devText(out io.Writer, w devWorld) {
	fmt.Fprintf(out, `A policy server and one cell are running; Ctrl-C stops them. In another terminal:

  export TULLE_SERVER=%s TULLE_TOKEN_FILE=%s
  tulle run --socket %s --app web -- tulle echo --http :8080
  tulle apps
  tulle status --socket %s

State and logs are in %s.
`, w.Server, w.TokenFile, w.Socket, w.Socket, w.Directory)
}

// runDev runs the programs until ctx ends, which is no error, or one of them
// does, which is.
func runDev(ctx context.Context, o devOptions) (err error) {
	// The children die with the thread that started them (Pdeathsig), and this
	// one lives as long as this function.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	if o.dir, err = filepath.Abs(o.dir); err != nil {
		return err
	}
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return err
	}
	unlock, err := lockDev(o.dir)
	if err != nil {
		return err
	}
	defer unlock()

	server, world, err := startDevServer(ctx, &o)
	if err != nil {
		return ended(ctx, err)
	}
	defer func() { err = errors.Join(err, server.stop()) }()
	cell, err := startDevCell(ctx, &o, world)
	if err != nil {
		return ended(ctx, err)
	}
	defer func() { err = errors.Join(err, cell.stop()) }()
	proxy, err := startDevProxy(ctx, &o, world)
	if err != nil {
		return ended(ctx, err)
	}
	defer func() { err = errors.Join(err, proxy.stop()) }()

	if err := o.announced(world.devWorld); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case <-server.done:
		return server.ended()
	case <-cell.done:
		return cell.ended()
	case <-proxy.done:
		return proxy.ended()
	}
}

// ended is err, unless it only says that the user did not wait for the start.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// startedWorld is a devWorld and what the cell needs of it.
type startedWorld struct {
	devWorld
	serverDir string
	internal  string // host:port
}

// startDevServer starts the policy server, in a directory that init made now or
// the first time. That is made aside and renamed, so that half of one never stays.
func startDevServer(ctx context.Context, o *devOptions) (*child, *startedWorld, error) {
	program := filepath.Join(o.bin, serverBinary)
	dir := filepath.Join(o.dir, "server")
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		fresh := dir + ".new"
		if err := os.RemoveAll(fresh); err != nil {
			return nil, nil, err
		}
		if err := runTool(ctx, program, "init", "--dir", fresh, "--network", o.network.String()); err != nil {
			return nil, nil, err
		}
		if err := os.Rename(fresh, dir); err != nil {
			return nil, nil, err
		}
	} else if err != nil {
		return nil, nil, err
	}
	config := filepath.Join(dir, "dev.yaml")
	if err := writeConfig(config,
		"external", o.external, "internal", "127.0.0.1:0", "metrics", "127.0.0.1:0", "network", o.network.String()); err != nil {
		return nil, nil, err
	}
	c, err := startChild(program, filepath.Join(o.dir, "server.log"), "--config", config)
	if err != nil {
		return nil, nil, err
	}
	var ready struct{ External, Internal, Metrics string }
	if err := c.awaitReady(ctx, &ready); err != nil {
		return nil, nil, errors.Join(err, c.stop())
	}
	return c, &startedWorld{
		devWorld: devWorld{Server: "http://" + ready.External, TokenFile: filepath.Join(dir, "admin.token"),
			Socket: o.socket, Directory: o.dir, ServerMetrics: ready.Metrics},
		serverDir: dir, internal: ready.Internal,
	}, nil
}

// startDevCell gives the cell a fresh credential, so that none can run out, and
// starts it. Its state stays.
func startDevCell(ctx context.Context, o *devOptions, w *startedWorld) (*child, error) {
	credentials, state := filepath.Join(o.dir, "credentials"), filepath.Join(o.dir, "cell")
	if err := os.RemoveAll(credentials); err != nil {
		return nil, err
	}
	if err := runTool(ctx, filepath.Join(o.bin, serverBinary), "issue-cell", devCell,
		"--config", filepath.Join(w.serverDir, "dev.yaml"), "--dir", w.serverDir, "--spaces", "*", "--out", credentials); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, err
	}
	config := filepath.Join(o.dir, "cell.yaml")
	if err := writeConfig(config,
		"name", devCell, "server", "https://"+w.internal, "credentials", credentials, "state_dir", state,
		"socket", o.socket, "underlay", o.underlay.String(), "port", "0", "mode", "wireguard", "wireguard", "0", "metrics", "127.0.0.1:0",
		// The server's token and keys are files of the same user as the commands.
		"hide", "["+quote(o.dir)+"]"); err != nil {
		return nil, err
	}
	c, err := startChild(filepath.Join(o.bin, cellBinary), filepath.Join(o.dir, "cell.log"), "--config", config)
	if err != nil {
		return nil, err
	}
	var ready struct{ Metrics string }
	if err := c.awaitReady(ctx, &ready); err != nil {
		return nil, errors.Join(err, c.stop())
	}
	w.CellMetrics = ready.Metrics
	return c, nil
}

// startDevProxy starts what terminates the containers' TLS.
func startDevProxy(ctx context.Context, o *devOptions, w *startedWorld) (*child, error) {
	c, err := startChild(filepath.Join(o.bin, proxyBinary), filepath.Join(o.dir, "tlsproxy.log"),
		"--cell", "--socket", o.socket, "--metrics", "127.0.0.1:0", "--drain", "1s")
	if err != nil {
		return nil, err
	}
	var ready struct{ Metrics string }
	if err := c.awaitReady(ctx, &ready); err != nil {
		return nil, errors.Join(err, c.stop())
	}
	w.ProxyMetrics = ready.Metrics
	return c, nil
}

// quote makes a YAML string that means itself, whatever a path has in it.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// writeConfig writes keys and values as YAML: strings quoted, numbers and lists
// as they are.
func writeConfig(path string, pairs ...string) error {
	var b strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		value := pairs[i+1]
		if strings.Trim(value, "0123456789") != "" && value[0] != '[' {
			value = quote(value)
		}
		fmt.Fprintf(&b, "%s: %s\n", pairs[i], value)
	}
	return os.WriteFile(path, []byte(b.String()), 0o600)
}
