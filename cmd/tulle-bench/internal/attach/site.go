package attach

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"tulle/cmd/internal/demo"
	"tulle/overlay/control"
	"tulle/overlay/netcfg"
	"tulle/policy"
)

// Every app of a container has a policy to an app of the other cell, which
// therefore has to acknowledge each attach.
const apps = 25

// site is a policy server and a cell that is there all the time.
type site struct {
	world  *demo.World
	bin    string
	cells  int
	server *demo.Cell // of the app that all others may reach
	far    spaces
}

const farApp = policy.AppID("ffffffff-0000-4000-8000-000000000000")

func (s *site) app(i int) policy.AppID {
	return policy.AppID(fmt.Sprintf("aaaaaaaa-0000-4000-8000-%012d", i%apps))
}

func newSite(ctx context.Context) (s *site, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	s = &site{bin: filepath.Dir(self)}
	if _, err := os.Stat(filepath.Join(s.bin, "tulle-cni")); err != nil {
		return nil, fmt.Errorf("find the plugin (make build puts it beside this program): %w", err)
	}
	if s.world, err = demo.NewWorld(demo.Options{}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if _, err := s.world.StartServer(ctx); err != nil {
		return nil, err
	}
	if s.server, err = s.freshCell(ctx); err != nil {
		return nil, err
	}
	if s.far, err = newSpaces(1); err != nil {
		return nil, err
	}
	var tun *os.File
	if err := netcfg.Do(s.far[0], func() (err error) { tun, err = netcfg.CreateTUN("eth0", 1450); return err }); err != nil {
		return nil, err
	}
	defer tun.Close()
	client, err := control.Dial(s.server.Socket)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	far := control.Attach{Container: "far", Network: "bench", Device: "eth0", Lifeline: control.LifelineNone}
	far.App.GUID = farApp
	if _, err := client.Attach(ctx, far, tun, nil); err != nil {
		return nil, err
	}
	a, err := s.world.Client()
	if err != nil {
		return nil, err
	}
	for i := range apps {
		p := policy.Policy{Source: s.app(i), Destination: farApp, Protocol: policy.TCP, Ports: policy.PortRange{Start: 8080, End: 8080}}
		if err := a.Create(ctx, p); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *site) close() error {
	var err error
	if s.server != nil {
		err = s.end(context.Background(), s.server)
	}
	s.far.close()
	return errors.Join(err, s.world.Close())
}

// freshCell starts one with a lease that nobody had.
func (s *site) freshCell(ctx context.Context) (*demo.Cell, error) {
	s.cells++
	return s.world.StartCell(ctx, fmt.Sprint("cell-", s.cells), netip.AddrFrom4([4]byte{127, 0, 1, byte(s.cells)}))
}

// end detaches what the cell still has, so that its holder ends with it, and stops it.
func (s *site) end(ctx context.Context, c *demo.Cell) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	client, err := control.Dial(c.Socket)
	if err != nil {
		return err
	}
	_, err = client.GC(ctx, control.GC{Network: "bench"})
	return errors.Join(err, client.Close(), c.Stop())
}

// spaces are network namespaces, each held by a descriptor.
type spaces []*os.File

func newSpaces(n int) (s spaces, err error) {
	for range n {
		var f *os.File
		if err := netcfg.OnThread(func() (err error) {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("make a network namespace: %w", err)
			}
			f, err = os.Open("/proc/thread-self/ns/net")
			return err
		}); err != nil {
			s.close()
			return nil, err
		}
		s = append(s, f)
	}
	return s, nil
}

func (s spaces) path(i int) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s[i].Fd()) }

func (s spaces) close() {
	for _, f := range s {
		_ = f.Close()
	}
}

// empty fails if a device but lo is left in one.
func (s spaces) empty() error {
	for i, f := range s {
		if err := netcfg.Do(f, func() error {
			links, err := net.Interfaces()
			if err == nil && len(links) > 1 {
				err = fmt.Errorf("container %d still has %v", i, links)
			}
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

// disk measures fsync where the daemon has its journal and the server its database.
type disk struct{ journal, database *os.File }

func newDisk(dir string) (*disk, error) {
	j, err := os.CreateTemp(dir, "fsync-")
	if err != nil {
		return nil, err
	}
	d, err := os.CreateTemp(dir, "fsync-")
	return &disk{j, d}, err
}

// sync is an append of a journal record's size, then one of a database's page or
// two, each made durable, in milliseconds.
func (d *disk) sync() (float64, error) {
	begun := time.Now()
	for f, size := range map[*os.File]int{d.journal: 300, d.database: 8192} {
		if _, err := f.Write(make([]byte, size)); err != nil {
			return 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
	}
	return time.Since(begun).Seconds() * 1000, nil
}

func (d *disk) close() error {
	var errs []error
	for _, f := range []*os.File{d.journal, d.database} {
		errs = append(errs, f.Close(), os.Remove(f.Name()))
	}
	return errors.Join(errs...)
}
