package tlsbench

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"tulle/cmd/tulle-bench/internal/bench"
)

// site is a backend, the two proxies in front of it, and a client.
type site struct {
	dir                 string
	backend, ours, peer string // addresses
	version             string // haproxy's
	in                  *json.Encoder
	out                 *json.Decoder
	stops               []func() error
}

func (s *site) close() error {
	var err error
	for i := len(s.stops) - 1; i >= 0; i-- {
		err = errors.Join(err, s.stops[i]())
	}
	return err
}

const haproxyConfig = `global
  nbthread 2
  maxconn 4096
  tune.ssl.cachesize 20000
  ssl-default-bind-options ssl-min-ver TLSv1.3
  ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256
defaults
  mode tcp
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  option tcp-smart-connect
frontend f
  bind %s ssl crt %s
  default_backend b
backend b
  server app %s
`

func (s *site) start(ctx context.Context) error {
	pair, err := writePair(s.dir)
	if err != nil {
		return err
	}
	if s.backend, err = s.role(ctx, backendRole); err != nil {
		return err
	}
	if err := s.startOurs(ctx, pair); err != nil {
		return err
	}
	if err := s.startPeer(ctx, pair); err != nil {
		return err
	}
	return s.startClient(ctx)
}

// load has the client do one load.
func (s *site) load(ctx context.Context, l load) (result, error) {
	if err := s.in.Encode(l); err != nil {
		return result{}, err
	}
	var r result
	if err := s.out.Decode(&r); err != nil {
		return r, fmt.Errorf("the client ended (%s): %w", l.Kind, err)
	}
	return r, ctx.Err()
}

// child starts a command that ends with its input, and returns its output.
func (s *site) child(cmd *exec.Cmd) (io.Writer, *bufio.Reader, error) {
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	s.stops = append(s.stops, func() error {
		in.Close()
		cmd.Process.Signal(syscall.SIGTERM)
		late := time.AfterFunc(10*time.Second, func() { cmd.Process.Kill() })
		defer late.Stop()
		err := cmd.Wait()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return nil // ended by the signal
		}
		return err
	})
	return in, bufio.NewReader(out), nil
}

func (s *site) role(ctx context.Context, name string) (address string, err error) {
	cmd, err := bench.Play(ctx, name)
	if err != nil {
		return "", err
	}
	_, out, err := s.child(cmd)
	if err != nil {
		return "", err
	}
	line, err := out.ReadString('\n')
	return line[:max(0, len(line)-1)], err
}

func (s *site) startClient(ctx context.Context) error {
	cmd, err := bench.Play(ctx, clientRole)
	if err != nil {
		return err
	}
	in, out, err := s.child(cmd)
	s.in, s.out = json.NewEncoder(in), json.NewDecoder(out)
	return err
}

func (s *site) startOurs(ctx context.Context, pair string) error {
	program, err := beside("tulle-tlsproxy")
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, program, "--listen", "127.0.0.1:0", "--metrics", "", "--backend", s.backend,
		"--certificate", pair, "--key", pair, "--drain", "1s", "--log-level", "error")
	cmd.Stderr = os.Stderr
	_, out, err := s.child(cmd)
	if err != nil {
		return err
	}
	line, err := out.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("start %s: %w", program, err)
	}
	var ready struct{ Listen string }
	err = json.Unmarshal(line, &ready)
	s.ours = ready.Listen
	return err
}

func (s *site) startPeer(ctx context.Context, pair string) error {
	program, err := exec.LookPath("haproxy")
	if err != nil {
		return errors.New("haproxy is not installed (apt-get install --no-install-recommends haproxy)")
	}
	if out, err := exec.CommandContext(ctx, program, "-v").Output(); err == nil {
		s.version = string(regexp.MustCompile(`\d+\.\d+\.\d+`).Find(out))
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.peer = free.Addr().String()
	free.Close()
	config := filepath.Join(s.dir, "haproxy.cfg")
	if err := os.WriteFile(config, fmt.Appendf(nil, haproxyConfig, s.peer, pair, s.backend), 0o600); err != nil {
		return err
	}
	var complaint bytes.Buffer
	cmd := exec.CommandContext(ctx, program, "-db", "-f", config)
	cmd.Stderr = &complaint
	if _, _, err := s.child(cmd); err != nil {
		return err
	}
	for range 200 {
		c, err := net.DialTimeout("tcp", s.peer, time.Second)
		if err == nil {
			return c.Close()
		}
		time.Sleep(25 * time.Millisecond)
	}
	return fmt.Errorf("haproxy does not listen: %s", complaint.Bytes())
}

// beside is a program of ours: where this one is.
func beside(name string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(self), name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("find %s (make build puts it into bin/): %w", name, err)
	}
	return path, nil
}

// writePair writes a certificate and its key into one file, as haproxy wants it.
func writePair(dir string) (string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"}, DNSNames: []string{"app.apps.internal"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return "", err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "pair.pem")
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...)
	return path, os.WriteFile(path, text, 0o600)
}
