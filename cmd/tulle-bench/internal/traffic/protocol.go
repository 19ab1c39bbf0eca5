package traffic

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"runtime"
	"time"

	"tulle/cmd/tulle-bench/internal/bench"
)

// Port is what a generator serves, by TCP and by UDP.
const Port = 7000

// role plays a generator.
const role = "traffic"

// Role is the generator, for the program's list.
func Role() bench.Role { return bench.Role{Name: role, Run: run} }

// Order is what a generator is asked to do.
type Order struct {
	Do      string // reach, stream, rr, crr, udp, flows; count
	To      netip.Addr
	Time    time.Duration
	Clients int // crr
	Size    int // udp: bytes of a datagram
	Count   int // flows: how many
}

// Result of an order.
type Result struct {
	Error     string
	PerSecond float64       // bits, requests, connections or datagrams
	Median    time.Duration // rr, crr: of one
	Sent      int           // udp
}

// Generator is a generator in a process of its own. It is for one goroutine.
type Generator struct {
	cmd     *exec.Cmd // nil: somebody else's
	in      io.Closer
	orders  *json.Encoder
	answers *json.Decoder
}

// Start starts one; start is how, in which namespace.
func Start(ctx context.Context, start func(*exec.Cmd) error) (*Generator, error) {
	cmd, err := bench.Play(ctx, role)
	if err != nil {
		return nil, err
	}
	return StartCommand(cmd, start)
}

// Arguments are those with which the program plays a generator.
func Arguments() []string { return []string{"role", role} }

// StartCommand starts one by a command of the caller's that leads to it.
func StartCommand(cmd *exec.Cmd, start func(*exec.Cmd) error) (*Generator, error) {
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := start(cmd); err != nil {
		return nil, fmt.Errorf("start a generator: %w", err)
	}
	g, err := Over(in, out)
	if err != nil {
		return nil, errors.Join(err, in.Close(), cmd.Wait())
	}
	g.cmd = cmd
	return g, nil
}

// Over is a generator that somebody else started, by its input and output.
func Over(in io.WriteCloser, out io.Reader) (*Generator, error) {
	g := &Generator{in: in, orders: json.NewEncoder(in), answers: json.NewDecoder(out)}
	var ready Result
	if err := g.answers.Decode(&ready); err != nil {
		return nil, fmt.Errorf("a generator does not start: %w", err)
	}
	return g, nil
}

// PID is its process.
func (g *Generator) PID() int { return g.cmd.Process.Pid }

// Close ends it.
func (g *Generator) Close() error {
	err := g.in.Close()
	if g.cmd != nil {
		err = errors.Join(err, g.cmd.Wait())
	}
	return err
}

// Relay has g do what stands on in, as if it were g's own input, but that to is
// the destination of each order. It returns when in ends.
func (g *Generator) Relay(in io.Reader, out io.Writer, to netip.Addr) error {
	answers := json.NewEncoder(out)
	if err := answers.Encode(Result{}); err != nil {
		return err
	}
	for orders := json.NewDecoder(in); ; {
		var o Order
		if err := orders.Decode(&o); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		o.To = to
		r, err := g.Do(o)
		if err != nil {
			r.Error = err.Error()
		}
		if err := answers.Encode(r); err != nil {
			return err
		}
	}
}

// Do has it do something and waits for the result.
func (g *Generator) Do(o Order) (Result, error) {
	if err := g.orders.Encode(o); err != nil {
		return Result{}, err
	}
	var r Result
	if err := g.answers.Decode(&r); err != nil {
		return r, fmt.Errorf("generator, asked for %s: %w", o.Do, err)
	}
	if r.Error != "" {
		return r, fmt.Errorf("generator, asked for %s to %s: %s", o.Do, o.To, r.Error)
	}
	return r, nil
}

// run is the generator itself, until its input ends.
func run(ctx context.Context, _ []string, in io.Reader, out io.Writer) error {
	// A thread that blocks unseen by the scheduler keeps its share of it.
	runtime.GOMAXPROCS(runtime.NumCPU() + 2)
	s, err := serve()
	if err != nil {
		return err
	}
	answers := json.NewEncoder(out)
	if err := answers.Encode(Result{}); err != nil {
		return err
	}
	for orders := json.NewDecoder(in); ; {
		var o Order
		if err := orders.Decode(&o); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		r, err := s.obey(ctx, o)
		if err != nil {
			r.Error = err.Error()
		}
		if err := answers.Encode(r); err != nil {
			return err
		}
	}
}

func (s *server) obey(ctx context.Context, o Order) (Result, error) {
	switch o.Do {
	case "reach":
		return Result{}, reach(ctx, o)
	case "stream":
		return stream(o)
	case "rr":
		return rr(o)
	case "crr":
		return crr(o)
	case "udp":
		return flood(o)
	case "flows":
		return Result{}, flows(o)
	case "count":
		return s.count(), nil
	}
	return Result{}, fmt.Errorf("no order is %q", o.Do)
}
