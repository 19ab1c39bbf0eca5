package tlsbench

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tulle/cmd/internal/demo"
	"tulle/cmd/tulle-bench/internal/bench"
	"tulle/overlay/control"
	"tulle/overlay/mint"
	"tulle/overlay/netcfg"
	"tulle/policy"
	"tulle/policy/api"
)

const (
	served = 250  // containers of the cell
	open   = 1000 // connections, four to each
)

// runMemory attaches real containers' devices and sockets to a real cell, without
// processes in them, and looks at the proxy.
func runMemory(ctx context.Context, r *bench.Run) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("memory-idle and memory-1000 make network namespaces: run as root")
	}
	w, err := demo.NewWorld(demo.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if _, err := w.StartServer(ctx); err != nil {
		return err
	}
	cell, err := w.StartCell(ctx, "cell", netip.MustParseAddr("127.0.0.1"))
	if err != nil {
		return err
	}
	a := &attached{cell: cell}
	defer func() { err = errors.Join(err, a.close()) }()
	a.all = make([]container, served+1)
	var wg sync.WaitGroup
	errs := make([]error, served+1)
	slots := make(chan struct{}, 16)
	for i := range a.all {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			errs[i] = a.add(ctx, i)
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	client, err := w.Client()
	if err != nil {
		return err
	}
	if err := client.Allow(ctx, "client", "app", policy.TCP, policy.PortRange{Start: demo.TLSPort, End: demo.TLSPort}); err != nil {
		return err
	}
	var idle, more []float64
	for range r.Runs("memory-idle") {
		before, grown, err := a.measure(ctx, w)
		if err != nil {
			return err
		}
		idle, more = append(idle, before), append(more, grown)
	}
	return errors.Join(r.Report("memory-idle", idle, nil), r.Report("memory-1000", more, nil))
}

// container is a namespace, held by a descriptor, whose app answers.
type container struct {
	ns     *os.File
	tun    *os.File
	app    net.Listener
	addr   netip.Addr
	client *control.Client
}

type attached struct {
	cell *demo.Cell
	all  []container
}

func (a *attached) close() error {
	var err error
	for i, c := range a.all {
		if c.app != nil {
			c.app.Close()
		}
		if c.client != nil {
			// Not left to the lifelines: the daemon would still be journalling when it
			// is stopped.
			err = errors.Join(err, c.client.Detach(context.Background(), control.Detach{Container: name(i)}), c.client.Close())
		}
		if c.tun != nil {
			err = errors.Join(err, c.tun.Close())
		}
		if c.ns != nil {
			err = errors.Join(err, c.ns.Close())
		}
	}
	return err
}

func name(index int) string { return fmt.Sprintf("bench-%d", index) }

// add attaches a container: the last is the client's.
func (a *attached) add(ctx context.Context, index int) (err error) {
	c := &a.all[index]
	app, secured := "app", index < served
	if !secured {
		app = "client"
	}
	var sockets *mint.Sockets
	if err := netcfg.OnThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if c.ns, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		if err := netcfg.LoopbackUp(); err != nil {
			return err
		}
		if c.tun, err = netcfg.CreateTUN("eth0", 1450); err != nil || !secured {
			return err
		}
		if sockets, err = mint.Create(control.TLSPort); err != nil {
			return err
		}
		c.app, err = net.Listen("tcp4", "127.0.0.1:8080")
		return err
	}); err != nil {
		return err
	}
	defer sockets.Close()
	if c.client, err = control.Dial(a.cell.Socket); err != nil {
		return err
	}
	request := control.Attach{Container: name(index), App: api.AppRef{Name: app, Space: demo.Space, Org: demo.Org},
		Device: "eth0", Lifeline: control.LifelineConnection}
	var files []*os.File
	if secured {
		request.TLS, files = &control.TLS{}, sockets.Files()
		go serve(c.app)
	}
	got, err := c.client.Attach(ctx, request, c.tun, nil, files...)
	if err != nil {
		return err
	}
	c.addr = got.Address.Addr()
	return netcfg.Do(c.ns, func() error {
		return netcfg.Configure(netcfg.Device{Name: "eth0", Address: got.Address, MTU: got.MTU})
	})
}

// serve answers each connection with a kilobyte for a byte.
func serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			one, answer := make([]byte, 1), make([]byte, 1<<10)
			for {
				if _, err := io.ReadFull(c, one); err != nil {
					return
				}
				if _, err := c.Write(answer); err != nil {
					return
				}
			}
		}()
	}
}

// measure starts a proxy, lets it get every certificate, and opens connections.
func (a *attached) measure(ctx context.Context, w *demo.World) (idle, grown float64, err error) {
	p, err := w.StartProxy(ctx, a.cell)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, p.Stop()) }()
	if err := certified(ctx, p.Metrics); err != nil {
		return 0, 0, err
	}
	conns, err := a.dial(ctx, served) // each certificate is used once
	if err != nil {
		return 0, 0, err
	}
	closeAll(conns)
	if idle, err = settled(p.PID()); err != nil {
		return 0, 0, err
	}
	if conns, err = a.dial(ctx, open); err != nil {
		return 0, 0, err
	}
	defer closeAll(conns)
	after, err := settled(p.PID())
	return idle, after - idle, err
}

// certified waits until the proxy has every container's certificate: a handshake
// does not wait for as long as two busy processors may take to make them all.
func certified(ctx context.Context, metrics string) error {
	const counter = `tulle_tlsproxy_certificate_reloads_total{result="taken"} `
	for range 600 {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+metrics+"/metrics", nil)
		if err != nil {
			return err
		}
		answer, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		page, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil {
			return err
		}
		_, rest, _ := bytes.Cut(page, []byte(counter))
		if n, err := strconv.Atoi(string(bytes.TrimSpace(bytes.SplitN(rest, []byte("\n"), 2)[0]))); err == nil && n >= served {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return errors.New("the proxy has not got every certificate within a minute")
}

func closeAll(conns []net.Conn) {
	for _, c := range conns {
		c.Close()
	}
}

// dial opens n connections from the client's container, over the containers in
// turn, and has each answered once.
func (a *attached) dial(ctx context.Context, n int) ([]net.Conn, error) {
	from := a.all[served]
	config := &tls.Config{InsecureSkipVerify: true}
	conns := make([]net.Conn, n)
	errs := make([]error, n)
	var wg sync.WaitGroup
	slots := make(chan struct{}, 16)
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			var raw net.Conn
			errs[i] = netcfg.Do(from.ns, func() (err error) {
				raw, err = net.DialTimeout("tcp4", netip.AddrPortFrom(a.all[i%served].addr, control.TLSPort).String(), 10*time.Second)
				return err
			})
			if errs[i] != nil {
				return
			}
			c := tls.Client(raw, config)
			conns[i] = c
			if _, errs[i] = c.Write([]byte("x")); errs[i] == nil {
				_, errs[i] = io.ReadFull(c, make([]byte, 1<<10))
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return conns, ctx.Err()
}

// settled is a process's resident memory, in MiB, when it has not changed for a
// second.
func settled(pid int) (float64, error) {
	last, same := 0.0, 0
	for range 40 {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return 0, err
		}
		_, rest, _ := bytes.Cut(b, []byte("VmRSS:"))
		kb, err := strconv.Atoi(string(bytes.Fields(rest)[0]))
		if err != nil {
			return 0, err
		}
		now := float64(kb) / 1024
		if same++; now != last {
			last, same = now, 0
		}
		if same >= 4 {
			break
		}
		time.Sleep(250 * time.Millisecond)
	}
	return last, nil
}
