package demo

import (
	"context"
	"fmt"
	"time"

	"tulle/cmd/internal/echo"
	"tulle/policy"
)

// TLSPort is where the cell's proxy terminates TLS for every container.
const TLSPort = 61443

// Proxy is a cell's tulle-tlsproxy.
type Proxy struct {
	Cell    *Cell
	Metrics string // host:port

	process *process
}

// StartProxy starts what terminates TLS for the cell's containers, and returns
// when it serves those that there are.
func (w *World) StartProxy(ctx context.Context, cell *Cell) (*Proxy, error) {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	p, err := w.start(program{name: cell.Name + "-tlsproxy", path: w.program("tulle-tlsproxy"),
		args: []string{"--cell", "--socket", cell.Socket, "--metrics", "127.0.0.1:0", "--drain", "1s"}, daemon: true})
	if err != nil {
		return nil, err
	}
	var ready struct{ Metrics string }
	if err := p.awaitReady(ctx, &ready); err != nil {
		return nil, err
	}
	proxy := &Proxy{Cell: cell, Metrics: ready.Metrics, process: p}
	w.proxies = append(w.proxies, proxy)
	return proxy, nil
}

// Kill ends the proxy with SIGKILL.
func (p *Proxy) Kill() error { return p.process.kill() }

// Stop ends the proxy in order.
func (p *Proxy) Stop() error { return p.process.terminate(p.Cell.world.patience) }

// PID is the proxy's process.
func (p *Proxy) PID() int { return p.process.pid() }

// encrypted: port 61443 needs a policy of its own; behind it is the app's plain
// port, and the client verifies the certificate without having been told how.
func (t *tour) encrypted(ctx context.Context) error {
	from, to := t.apps[frontend][0], t.apps[backend][1]
	if err := t.try(ctx, echo.Refused, from, to, echo.OpDial, TLSPort); err != nil {
		return err
	}
	if err := t.api.Allow(ctx, frontend, backend, policy.TCP, port(TLSPort)); err != nil {
		return err
	}
	return t.pairs(frontend, backend, func(from, to *Instance) error {
		e, err := from.Do(ctx, echo.Request{Op: echo.OpGetTLS, Address: to.At(TLSPort), Until: echo.OK,
			Timeout: 3 * time.Second, Patience: stepPatience / 2})
		if err != nil {
			return err
		}
		t.check(e.Outcome == echo.OK, e.Took, fmt.Sprintf("%s -> https://%s/, %s", from, to.At(TLSPort), where(from, to)), came(e))
		return nil
	})
}
