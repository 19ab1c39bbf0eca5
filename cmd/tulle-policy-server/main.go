// Command tulle-policy-server is the control plane: it keeps policies, tags,
// leases and endpoints in one database, serves users over the external API and
// cells over the internal one.
//
// main maps an error to an exit code; run is the whole program over its
// arguments and streams. The commands: serve (the default), init, add-token,
// remove-token, tokens, issue-cell,
// join-token, revoke-cell, revocations, issue-legacy, add-peer, remove-peer, export, import and version.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
)

// garbage is how much of it, in percent of what is in use, waits to be collected.
// Most of the server's memory lives as long as its cells' connections; the usual
// hundred would double it.
const garbage = 50

func main() {
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
	fmt.Fprintf(stderr, "tulle-policy-server: %v\n", err)
	if errors.As(err, new(*usageError)) {
		return 2
	}
	return 1
}

// usageError is a command line that makes no sense.
type usageError struct{ error }

func (e *usageError) Unwrap() error { return e.error }

// place says where a server's configuration is.
type place struct{ config, dir string }

func (p *place) flags(c *cobra.Command) {
	c.PersistentFlags().StringVar(&p.config, "config", "", "the configuration file (default config.yaml of --dir)")
	c.PersistentFlags().StringVar(&p.dir, "dir", ".", "the directory that init made")
}

func (p *place) load() (*config, error) {
	if p.config == "" {
		return loadConfig(filepath.Join(p.dir, configFile))
	}
	return loadConfig(p.config)
}

func command() *cobra.Command {
	var p place
	root := &cobra.Command{
		Use:           "tulle-policy-server",
		Short:         "The control plane of a Tulle network",
		Args:          noArguments,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(c *cobra.Command, _ []string) error {
			return serve(c.Context(), &p, c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	p.flags(root)
	root.AddCommand(
		&cobra.Command{Use: "serve", Short: "Run the server until it is told to stop (the default)", Args: noArguments, RunE: root.RunE},
		initCommand(&p), addTokenCommand(&p), removeTokenCommand(&p), tokensCommand(&p), issueCellCommand(&p), joinTokenCommand(&p), revokeCellCommand(&p), revocationsCommand(&p), issueLegacyCommand(&p), addPeerCommand(&p), removePeerCommand(&p),
		exportCommand(&p), importCommand(&p),
		&cobra.Command{Use: "version", Short: "Say what this was built from", Args: noArguments, RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(c.OutOrStdout(), version())
			return err
		}},
	)
	return root
}

func noArguments(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return &usageError{fmt.Errorf("unknown command or argument %q", args[0])}
	}
	return nil
}

// oneArgument wants exactly one argument, called what.
func oneArgument(what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != 1 {
			return &usageError{fmt.Errorf("give one %s, not %d arguments", what, len(args))}
		}
		return nil
	}
}

func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "tulle-policy-server unknown"
	}
	text := "tulle-policy-server " + info.Main.Version + " " + info.GoVersion
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			text += " " + s.Value
		}
	}
	return text
}
