package demo

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Server is the world's policy server.
type Server struct {
	External string // host:port of the external API
	Internal string // host:port of the internal API
	Metrics  string // host:port

	world    *World
	name     string // of the process, and of its log
	dir      string
	config   string
	settings []string
	netns    *os.File
	process  *process
}

type serverReady struct {
	External string `json:"external"`
	Internal string `json:"internal"`
	Metrics  string `json:"metrics"`
}

// StartServer makes the roots, the admin's token and a configuration, and
// starts the policy server on free ports. Settings are further lines of its
// configuration; they take the place of those of the same key.
func (w *World) StartServer(ctx context.Context, settings ...string) (*Server, error) {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	parent, err := w.ownDir("server")
	if err != nil {
		return nil, err
	}
	s := &Server{world: w, name: "tulle-policy-server", dir: filepath.Join(parent, "state"), config: filepath.Join(parent, "config.yaml"),
		External: "127.0.0.1:0", Internal: "127.0.0.1:0", Metrics: "127.0.0.1:0", settings: settings, netns: w.netns}
	if err := w.runTool(ctx, "init", "init", "--dir", s.dir, "--network", w.Network.String()); err != nil {
		return nil, fmt.Errorf("make the server's roots and credentials: %w", err)
	}
	if err := s.start(ctx); err != nil {
		return nil, err
	}
	w.Server = s
	return s, nil
}

// StartReplica starts another server on the database, the roots and the tokens
// of the world's, which stands on PostgreSQL. It ends with the world.
func (w *World) StartReplica(ctx context.Context, name string) (*Server, error) {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	own, err := w.ownDir(name)
	if err != nil {
		return nil, err
	}
	s := &Server{world: w, name: name, dir: w.Server.dir, config: filepath.Join(own, "config.yaml"),
		External: "127.0.0.1:0", Internal: "127.0.0.1:0", Metrics: "127.0.0.1:0",
		settings: append(slices.Clone(w.Server.settings), "state: "+own), netns: w.netns}
	return s, s.start(ctx)
}

// start runs the server at the addresses it has, which are then those it got.
func (s *Server) start(ctx context.Context) error {
	lines := []string{
		"external: " + s.External,
		"internal: " + s.Internal,
		"metrics: " + s.Metrics,
		"database: " + filepath.Join(s.dir, "policy.db"),
		"pki: " + filepath.Join(s.dir, "pki"),
		"tokens: " + filepath.Join(s.dir, "tokens.yaml"),
		"network: " + s.world.Network.String(),
	}
	for _, set := range s.settings {
		key, _, _ := strings.Cut(set, ":")
		lines = slices.DeleteFunc(lines, func(l string) bool { return strings.HasPrefix(l, key+":") })
	}
	config := strings.Join(append(lines, s.settings...), "\n") + "\n"
	if err := os.WriteFile(s.config, []byte(config), 0o644); err != nil {
		return err
	}
	p, err := s.world.start(program{name: s.name, path: s.world.program("tulle-policy-server"),
		args: []string{"--config", s.config}, daemon: true, netns: s.netns})
	if err != nil {
		return err
	}
	var r serverReady
	if err := p.awaitReady(ctx, &r); err != nil {
		return err
	}
	s.process, s.External, s.Internal, s.Metrics = p, r.External, r.Internal, r.Metrics
	return nil
}

// Kill ends the server with SIGKILL.
func (s *Server) Kill() error { return s.process.kill() }

// Restart starts a server that has ended, at the addresses it had.
func (s *Server) Restart(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	return s.start(ctx)
}

// Stop ends the server in order.
func (s *Server) Stop() error { return s.process.terminate(s.world.patience) }

// PID is the server's process.
func (s *Server) PID() int { return s.process.pid() }

// PKI is the directory with the server's roots.
func (s *Server) PKI() string { return filepath.Join(s.dir, "pki") }

// Dir is the directory of its state: the database's, if that is a file.
func (s *Server) Dir() string { return s.dir }

// TokenFile holds the admin's token.
func (s *Server) TokenFile() string { return filepath.Join(s.dir, "admin.token") }

// Log is the file with what the server logged.
func (s *Server) Log() string { return s.process.log }
