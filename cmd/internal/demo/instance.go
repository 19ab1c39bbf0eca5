package demo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"

	"tulle/cmd/internal/echo"
)

// Ports that every instance serves.
const (
	Port       = 8080 // HTTP
	SecondPort = 8081 // HTTP
	FirstUDP   = 9000
	LastUDP    = 9009
)

// Instance is one container of an app, and the hand inside it.
type Instance struct {
	App    string
	Index  int
	Cell   *Cell
	Addr   netip.Addr // IPv4
	Addr6  netip.Addr // IPv6; zero where the overlay has none
	Device string     // inside its namespace, with its index: "eth0#2"
	*echo.Client

	netns   string
	process *process
}

// String is "frontend/0".
func (i *Instance) String() string { return i.App + "/" + strconv.Itoa(i.Index) }

// At is the address of one of its ports.
func (i *Instance) At(port uint16) string { return netip.AddrPortFrom(i.Addr, port).String() }

// StartApp starts an instance with `tulle run` and returns when it serves.
func (w *World) StartApp(ctx context.Context, cell *Cell, app string, index int) (*Instance, error) {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	i := &Instance{App: app, Index: index, Cell: cell}
	inRead, inWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer inRead.Close()
	outRead, outWrite, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, inWrite.Close())
	}
	defer outWrite.Close()
	i.process, err = w.start(program{
		name: fmt.Sprintf("%s-%d", app, index),
		path: w.program("tulle"),
		args: []string{"run", "--app", app, "--space", Space, "--org", Org, "--instance", strconv.Itoa(index),
			"--socket", cell.Socket, "--",
			w.program("tulle"), "echo", "--control", "--name", i.String(),
			"--http", fmt.Sprintf(":%d,:%d", Port, SecondPort), "--udp", fmt.Sprintf("%d-%d", FirstUDP, LastUDP)},
		in: inRead, out: outWrite,
	})
	if err != nil {
		return nil, errors.Join(err, inWrite.Close(), outRead.Close())
	}
	i.Client = echo.NewClient(inWrite, outRead)
	w.instances = append(w.instances, i)
	ready, err := i.Ready(ctx)
	if errors.Is(err, echo.ErrGone) {
		<-i.process.done
		return nil, i.process.ended()
	}
	if err != nil {
		return nil, fmt.Errorf("wait for %s to serve: %w%s", i, err, i.process.tail())
	}
	if i.Addr, i.Addr6, err = addresses(ready.Self); err != nil {
		return nil, fmt.Errorf("%s: %w", i, err)
	}
	i.netns, i.Device = ready.NetNS, ready.Device
	if err := w.pin(i.netns); err != nil {
		return nil, err
	}
	return i, nil
}

// addresses are a container's own: one of IPv4, and at most one of IPv6.
func addresses(self *echo.Self) (v4, v6 netip.Addr, err error) {
	if self == nil {
		return v4, v6, errors.New("tells nothing of itself")
	}
	for _, text := range self.Addrs {
		a, err := netip.ParseAddr(text)
		switch {
		case err != nil:
			return v4, v6, err
		case a.Is4() && !v4.IsValid():
			v4 = a
		case a.Is6() && !v6.IsValid():
			v6 = a
		default:
			return v4, v6, fmt.Errorf("has more addresses than it was given: %v", self.Addrs)
		}
	}
	if !v4.IsValid() {
		return v4, v6, fmt.Errorf("has no IPv4 address of its own: %v", self.Addrs)
	}
	return v4, v6, nil
}

// Contain starts another command in a container of an app, with `tulle run`. It
// ends by itself, or with the world.
func (w *World) Contain(cell *Cell, app string, in, out *os.File, command ...string) error {
	_, err := w.start(program{name: app, path: w.program("tulle"), in: in, out: out,
		args: append([]string{"run", "--app", app, "--space", Space, "--org", Org, "--socket", cell.Socket, "--"}, command...)})
	return err
}

// Kill ends the instance's supervisor with SIGKILL, as a crash would, and waits
// until what ran inside is gone too.
func (i *Instance) Kill(ctx context.Context) error {
	return errors.Join(i.process.kill(), i.Gone(ctx), i.Close())
}

// Stop ends the instance's command, which ends its supervisor.
func (i *Instance) Stop() error {
	return i.process.stop(i.Cell.world.patience, i.Close)
}
