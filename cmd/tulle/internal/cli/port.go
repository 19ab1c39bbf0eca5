package cli

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tulle/overlay/control"
)

// port is `tulle port`: ports of this host that lead to containers.
func (p *program) port() *cobra.Command {
	cmd := &cobra.Command{Use: "port", Short: "Forward ports of this host to its containers"}
	cmd.AddCommand(p.portAdd(), p.portRemove(), p.portList())
	return cmd
}

// asking adds the flag of a command that asks the cell daemon of this host.
func asking(cmd *cobra.Command, names []string, ask func(ctx context.Context, c *control.Client, args []string) error) *cobra.Command {
	var socket string
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := exactArgs(cmd, args, names...); err != nil {
			return err
		}
		c, err := control.Dial(socket)
		if err != nil {
			return err
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
		defer cancel()
		return ask(ctx, c, args)
	}
	cmd.Flags().StringVar(&socket, "socket", control.DefaultSocket(), "socket of the cell daemon")
	return cmd
}

func (p *program) portAdd() *cobra.Command {
	var keep bool
	cmd := &cobra.Command{
		Use:   "add CONTAINER [HOST:]PORT:CONTAINER_PORT[/udp]",
		Short: "Forward a port of this host to a container",
		Long: `Forwards a port of this host to one of a container's, TCP unless /udp is said. The
container sees the client's own address. HOST is an address of this host; without
it the port is bound on every IPv4 address. The container's TLS port, 61443, is
asked for by its name, 443:tls, where the app ends TLS itself.`,
		Example: "  tulle port add run-web 8080:80\n  tulle port add run-dns 192.0.2.1:53:5353/udp",
	}
	var port control.Port
	asking(cmd, []string{"CONTAINER", "PORT"}, func(ctx context.Context, c *control.Client, args []string) error {
		var err error
		if port, err = parsePort(args[1]); err != nil {
			return usageError(cmd, "%v", err)
		}
		port.Keep = keep
		if err := c.AddPort(ctx, control.PortAdd{Container: args[0], Port: port}); err != nil {
			return err
		}
		return p.print(struct{}{}, func(w io.Writer) { fmt.Fprintln(w, "OK") })
	})
	cmd.Flags().BoolVar(&keep, "keep", false, "leave the port bound for some minutes when the container goes, for one of its name that comes back")
	return cmd
}

func (p *program) portRemove() *cobra.Command {
	cmd := &cobra.Command{Use: "remove CONTAINER [HOST:]PORT[/udp]", Short: "Forward a port no more, and end its connections"}
	return asking(cmd, []string{"CONTAINER", "PORT"}, func(ctx context.Context, c *control.Client, args []string) error {
		port, err := parseHostPort(args[1])
		if err != nil {
			return usageError(cmd, "%v", err)
		}
		if err := c.RemovePort(ctx, control.PortRemove{Container: args[0], Port: port}); err != nil {
			return err
		}
		return p.print(struct{}{}, func(w io.Writer) { fmt.Fprintln(w, "OK") })
	})
}

func (p *program) portList() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List the ports of this host that lead to containers"}
	return asking(cmd, nil, func(ctx context.Context, c *control.Client, _ []string) error {
		list, err := c.Ports(ctx)
		if err != nil {
			return err
		}
		return p.print(list, func(w io.Writer) {
			rows := [][]string{{"host", "protocol", "container port", "container", "app", "note"}}
			for _, l := range list {
				port, note := strconv.Itoa(int(l.Port.Port)), ""
				if l.TLS {
					port = "tls"
				}
				if l.Waiting {
					note = "waits for its container to come back"
				}
				app := l.AppName
				if app == "" {
					app = string(l.App)
				}
				rows = append(rows, []string{netip.AddrPortFrom(l.HostIP, l.HostPort).String(), l.Protocol, port, l.Container, app, note})
			}
			table(w, rows)
		})
	})
}

// parsePort reads [HOST:]PORT:CONTAINER_PORT[/PROTOCOL].
func parsePort(s string) (control.Port, error) {
	rest, protocol, _ := strings.Cut(s, "/")
	i := strings.LastIndexByte(rest, ':')
	if i < 0 {
		return control.Port{}, fmt.Errorf("%q: must be [HOST:]PORT:CONTAINER_PORT[/tcp or /udp]", s)
	}
	host, inside := rest[:i], rest[i+1:]
	if protocol != "" {
		host += "/" + protocol
	}
	p, err := parseHostPort(host)
	if err != nil {
		return p, err
	}
	if inside == "tls" {
		p.TLS = true
		return p, nil
	}
	p.Port, err = portNumber(inside)
	return p, err
}

// parseHostPort reads [HOST:]PORT[/PROTOCOL].
func parseHostPort(s string) (control.Port, error) {
	var p control.Port
	rest, protocol, has := strings.Cut(s, "/")
	if has && protocol != "tcp" && protocol != "udp" {
		return p, fmt.Errorf("protocol %q: must be tcp or udp", protocol)
	}
	p.Protocol = protocol
	var err error
	if i := strings.LastIndexByte(rest, ':'); i >= 0 {
		host := strings.TrimSuffix(strings.TrimPrefix(rest[:i], "["), "]")
		if p.HostIP, err = netip.ParseAddr(host); err != nil {
			return p, fmt.Errorf("host %q: must be an address of this host", host)
		}
		rest = rest[i+1:]
	}
	p.HostPort, err = portNumber(rest)
	return p, err
}

func portNumber(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("port %q: must be from 1 to 65535", s)
	}
	return uint16(n), nil
}
