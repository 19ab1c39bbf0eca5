// Command tulle-tlsproxy terminates TLS on port 61443 of containers: of all of a
// cell, beside its daemon, or as the sidecar of one. Packages tlsproxy and
// tlsproxy/cell do the work.
package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"

	"tulle/overlay/control"
	"tulle/tlsproxy"
	"tulle/tlsproxy/cell"
	"tulle/tlsproxy/certs"
)

// credentials is where Cloud Foundry puts a container's certificate.
const credentials = "/etc/cf-instance-credentials"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	heap := ballast(os.Getenv)
	err := command().ExecuteContext(ctx)
	runtime.KeepAlive(heap)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "tulle-tlsproxy:", err)
		os.Exit(1)
	}
}

// settings are the flags.
type settings struct {
	listen, metrics  string
	certificate, key string
	backend          string
	cell             bool
	socket           string
	drain            time.Duration
	level            slog.Level
	proxy            tlsproxy.Options
}

func command() *cobra.Command {
	var s settings
	cmd := &cobra.Command{
		Use:   "tulle-tlsproxy",
		Short: "Terminate TLS for the apps of a cell, or for the one in the same container",
		Long: `Accepts TLS 1.2 and 1.3 and carries what is inside to the app's port.

With --cell it serves port 61443 of every container of the cell whose daemon listens on
--socket, and gets sockets and certificates from there; it runs as the daemon's user.
Otherwise it is the sidecar of one container, with certificate files; changed ones are
taken at the next handshake.

SIGTERM stops accepting and waits for the connections that are there, at most as long
as --drain says.`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return run(cmd.Context(), s, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVar(&s.listen, "listen", ":61443", "address to accept TLS on")
	f.BoolVar(&s.cell, "cell", false, "serve all containers of the cell")
	f.StringVar(&s.socket, "socket", control.DefaultSocket(), "with --cell: the daemon's socket")
	f.StringVar(&s.backend, "backend", tlsproxy.DefaultBackend, "address of the app")
	f.StringVar(&s.certificate, "certificate", filepath.Join(credentials, "instance.crt"), "certificate and chain, PEM")
	f.StringVar(&s.key, "key", filepath.Join(credentials, "instance.key"), "private key, PEM")
	f.StringVar(&s.metrics, "metrics", "127.0.0.1:9480", `address for /metrics, "" for none`)
	f.DurationVar(&s.drain, "drain", 30*time.Second, "how long connections may go on after SIGTERM")
	f.DurationVar(&s.proxy.HandshakeTimeout, "handshake-timeout", tlsproxy.DefaultHandshakeTimeout, "how long a handshake may take")
	f.DurationVar(&s.proxy.DialTimeout, "dial-timeout", tlsproxy.DefaultDialTimeout, "how long reaching the app may take")
	f.DurationVar(&s.proxy.IdleTimeout, "idle-timeout", tlsproxy.DefaultIdleTimeout, "how long a connection may be silent")
	f.IntVar(&s.proxy.MaxConnections, "max-connections", tlsproxy.DefaultMaxConnections, "connections at once")
	f.IntVar(&s.proxy.MaxPerSite, "max-per-container", 0, "with --cell: connections of one container at once (default: a quarter of --max-connections)")
	f.TextVar(&s.level, "log-level", slog.LevelInfo, "debug, info, warn or error")
	return cmd
}

// ready is the line that tells a parent which addresses were bound.
type ready struct {
	Ready   bool   `json:"ready"`
	Listen  string `json:"listen,omitempty"`
	Cell    bool   `json:"cell,omitempty"` // all containers that the cell has are served
	Metrics string `json:"metrics,omitempty"`
}

// run serves until ctx ends, then drains. Everything that can be wrong with the
// flags or the files is found before a client is accepted.
func run(ctx context.Context, s settings, stdout, stderr io.Writer) error {
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: s.level}))
	if s.proxy.MaxConnections <= 0 || s.proxy.HandshakeTimeout <= 0 || s.proxy.DialTimeout <= 0 || s.proxy.IdleTimeout <= 0 {
		return errors.New("limits and timeouts must be larger than 0")
	}
	if s.drain < 0 {
		return fmt.Errorf("--drain %s: must not be less than 0", s.drain)
	}
	s.proxy.Log = log
	if s.cell {
		return runCell(ctx, s, stdout, log)
	}
	if err := checkBackend(ctx, s.backend); err != nil {
		return err
	}
	files, err := certs.Load(s.certificate, s.key, log)
	if err != nil {
		return err
	}
	proxy := tlsproxy.New(s.proxy)
	site := &tlsproxy.Site{
		Name:        s.backend,
		Certificate: func(context.Context) (*tls.Certificate, error) { return files.Certificate(), nil },
		Dial:        func(ctx context.Context) (net.Conn, error) { return toApp.DialContext(ctx, "tcp", s.backend) },
	}
	listener, err := listen(ctx, s.listen)
	if err != nil {
		return err
	}
	defer listener.Close()
	up := ready{Ready: true, Listen: listener.Addr().String()}
	if s.metrics != "" {
		addr, stop, err := serveMetrics(s.metrics, proxy.Collector(files))
		if err != nil {
			return err
		}
		defer stop()
		up.Metrics = addr
	}
	served := make(chan error, 1)
	go func() { served <- proxy.Serve(listener, site) }()
	if err := json.NewEncoder(stdout).Encode(up); err != nil {
		return err
	}
	log.Info("ready", "listen", up.Listen, "backend", s.backend, "expires", files.NotAfter())
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	drain(proxy, s.drain, log)
	return nil
}

// checkBackend refuses what no connection could ever be carried to.
func checkBackend(ctx context.Context, address string) error {
	_, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = net.DefaultResolver.LookupPort(ctx, "tcp", port)
	}
	if err != nil || port == "" || port == "0" {
		return fmt.Errorf("--backend %q: must be host:port, such as %s", address, tlsproxy.DefaultBackend)
	}
	return nil
}

func drain(proxy *tlsproxy.Proxy, patience time.Duration, log *slog.Logger) {
	log.Info("draining", "connections", proxy.Open(), "for", patience)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if cut, err := proxy.Shutdown(ctx); err != nil {
		log.Warn("connections cut", "connections", cut)
	}
}

// runCell is run for all containers of a cell.
func runCell(ctx context.Context, s settings, stdout io.Writer, log *slog.Logger) error {
	if s.proxy.MaxPerSite == 0 {
		s.proxy.MaxPerSite = max(1, s.proxy.MaxConnections/4)
	}
	proxy := tlsproxy.New(s.proxy)
	up := ready{Ready: true, Cell: true}
	var said error
	fleet := cell.New(cell.Options{Socket: s.socket, Proxy: proxy, Log: log, Ready: func() {
		said = json.NewEncoder(stdout).Encode(up)
		log.Info("ready", "socket", s.socket, "containers", proxy.Sites())
	}})
	defer fleet.Close()
	if s.metrics != "" {
		addr, stop, err := serveMetrics(s.metrics, proxy.Collector(fleet))
		if err != nil {
			return err
		}
		defer stop()
		up.Metrics = addr
	}
	err := fleet.Run(ctx)
	drain(proxy, s.drain, log)
	return errors.Join(err, said)
}

func serveMetrics(address string, c prometheus.Collector) (bound string, stop func(), err error) {
	registry := prometheus.NewRegistry()
	if err := registry.Register(c); err != nil {
		return "", nil, err
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return "", nil, fmt.Errorf("metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second}
	go server.Serve(l)
	return l.Addr().String(), func() { server.Close() }, nil
}
