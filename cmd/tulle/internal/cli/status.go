package cli

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tulle/overlay/control"
	"tulle/policy/api"
)

// status asks the cell daemon of this host.
func (p *program) status() *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what the cell daemon on this host is doing",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := exactArgs(cmd, args); err != nil {
				return err
			}
			c, err := control.Dial(socket)
			if err != nil {
				return err
			}
			defer c.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
			defer cancel()
			s, err := c.Status(ctx)
			if err != nil {
				return err
			}
			return p.print(s, func(w io.Writer) { statusText(w, s) })
		},
	}
	cmd.Flags().StringVar(&socket, "socket", control.DefaultSocket(), "socket of the cell daemon")
	return cmd
}

func statusText(w io.Writer, s control.Status) {
	server := "not connected, the last table stands"
	if s.Connected {
		server = "connected"
	}
	if len(s.Plain) > 0 {
		fmt.Fprintf(w, "PLAIN TEXT: these peers have mode vxlan, their traffic can be read and forged: %s\n\n", strings.Join(s.Plain, ", "))
	}
	mode := string(s.Mode)
	if s.Mode == api.ModeVXLAN {
		mode += ", PLAIN TEXT to every peer"
	}
	table(w, [][]string{
		{"cell:", s.Cell},
		{"lease:", s.Lease.String()},
		{"mode:", mode},
		{"underlay:", s.Underlay.String()},
		{"pid:", strconv.Itoa(s.PID)},
		{"policy server:", server},
		{"revision:", strconv.FormatUint(uint64(s.Revision), 10)},
		{"policies:", strconv.Itoa(s.Policies)},
		{"flows:", strconv.Itoa(s.Flows)},
		{"peers:", strconv.Itoa(len(s.Peers))},
		{"remote endpoints:", strconv.Itoa(len(s.Remote))},
	})
	if len(s.Endpoints) == 0 {
		return
	}
	fmt.Fprintln(w)
	rows := [][]string{{"address", "app", "instance", "container", "tag", "lifeline"}}
	for _, e := range s.Endpoints {
		app, lifeline := e.AppName, string(e.Lifeline)
		if app == "" {
			app = string(e.App)
		}
		if e.Waiting {
			lifeline += " (waiting for its attacher)"
		}
		rows = append(rows, []string{e.Address.String(), app, e.Instance, e.Container, e.Tag.String(), lifeline})
	}
	table(w, rows)
}

// build is what the program knows of its making.
type build struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Modified bool   `json:"modified,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func (p *program) version() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the version of this program",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := exactArgs(cmd, args); err != nil {
				return err
			}
			b := build{Version: "(devel)", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
			if info, ok := debug.ReadBuildInfo(); ok {
				b.Version = first(info.Main.Version, b.Version)
				for _, s := range info.Settings {
					switch s.Key {
					case "vcs.revision":
						b.Revision = s.Value
					case "vcs.modified":
						b.Modified = s.Value == "true"
					}
				}
			}
			return p.print(b, func(w io.Writer) { fmt.Fprintf(w, "tulle version %s (%s, %s)\n", b.Version, b.Go, b.Platform) })
		},
	}
}
