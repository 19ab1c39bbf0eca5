package overlay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"tulle/overlay/control"
	"tulle/overlay/netcfg"
	"tulle/overlay/netcfg/nstest"
	"tulle/policy"
	"tulle/policy/api"
)

// soakEnv is how long TestSoak runs, in all; see make soak.
const soakEnv = "TULLE_SOAK"

// standstill is how long a connection may stand still before that is a fault. Where
// other work takes the processors for a minute datagrams are lost in full sockets, and
// TCP waits twice as long each time.
const standstill = 2 * time.Minute

// Mixed traffic over both families, on one cell and across, in both tunnel modes, with
// policies and containers that come and go all the while: nothing happens to it but
// what a policy says, and afterwards nothing is left: no flow, no goroutine, no
// descriptor, no memory.
func TestSoak(t *testing.T) {
	length := time.Minute
	if s := os.Getenv(soakEnv); s != "" {
		var err error
		if length, err = time.ParseDuration(s); err != nil {
			t.Fatalf("%s: %v", soakEnv, err)
		}
	}
	for _, mode := range []api.TunnelMode{api.ModeVXLAN, api.ModeWireGuard} {
		t.Run(string(mode), func(t *testing.T) { soak(t, mode, length/2) })
	}
}

// soaked is what runs in a soak.
type soaked struct {
	*testing.T
	p        *plane
	ctx      context.Context
	one, two *cell
	web      *app
	dbs      [2]*app // near and far
	more     *nstest.Namespace

	conns, resets, refusals, datagrams, answered, bytes, changes, attaches atomic.Int64
}

func soak(t *testing.T, mode api.TunnelMode, length time.Duration) {
	p := newPlane(t)
	with := func(c *Config) { c.Mode = mode }
	s := &soaked{T: t, p: p, one: p.cell("one", "127.0.0.1", with), two: p.cell("two", "127.0.0.2", with)}
	p.allow(udpPolicy("web", "db", 53), tcp("web", "db", 5432), tcp("web", "db", 80))
	s.web = s.one.attach("web-1", "web", control.LifelineNone)
	s.dbs = [2]*app{s.one.attach("db-1", "db", control.LifelineNone), s.two.attach("db-2", "db", control.LifelineNone)}
	for _, db := range s.dbs {
		db.listen(5432)
		db.listen6(5432)
		db.listen(80)
		db.echoUDP(db.addr(), 53)
		db.echoUDP(db.at.Address6.Addr(), 53)
		s.web.reaches(db, 5432)
	}
	s.more = nstest.New(t)
	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	s.ctx = ctx
	var wg sync.WaitGroup
	run := func(f func() error) {
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := f(); err != nil && ctx.Err() == nil {
					t.Error(err)
					return
				}
			}
		})
	}
	before := measure()
	for i, db := range s.dbs {
		run(func() error { return s.connection(db, i) })
		run(func() error { return s.bulk(db) })
		run(func() error { return s.datagram(db) })
	}
	run(s.forbidden)
	run(s.policy)
	run(s.container)

	warm := time.NewTimer(length / 3)
	defer warm.Stop()
	<-warm.C
	middle := measure()
	wg.Wait()
	p.deny(udpPolicy("web", "db", 53), tcp("web", "db", 5432), tcp("web", "db", 80))
	for _, c := range []*cell{s.one, s.two} {
		c.untilStatus("no flow outlives its policy", func(st control.Status) bool { return st.Flows == 0 })
		c.untilStatus("only what stays attached is there", func(st control.Status) bool { return len(st.Endpoints) <= 2 })
	}
	eventually(t, "what ran has ended, and its descriptors are closed", func() bool {
		now := measure()
		return now.goroutines <= before.goroutines+4 && now.files <= before.files+4
	})
	after := measure()
	t.Logf("%d connections, %d reset, %d refused; %d datagrams, %d answered; %d MiB in bulk; %d policy changes; %d attaches; before %v, in the middle %v, after %v",
		s.conns.Load(), s.resets.Load(), s.refusals.Load(), s.datagrams.Load(), s.answered.Load(), s.bytes.Load()>>20, s.changes.Load(), s.attaches.Load(), before, middle, after)
	if limit := middle.heap*5/4 + 16<<20; after.heap > limit {
		t.Errorf("%d MiB in use, %d in the middle", after.heap>>20, middle.heap>>20)
	}
	for what, n := range map[string]int64{"connections": s.conns.Load(), "refusals": s.refusals.Load(), "answered datagrams": s.answered.Load(), "bytes": s.bytes.Load(), "policy changes": s.changes.Load(), "attaches": s.attaches.Load()} {
		if n == 0 {
			t.Errorf("no %s: the soak shows nothing", what)
		}
	}
}

// measured is what a leak would show in.
type measured struct {
	goroutines, files int
	heap              uint64
}

func (m measured) String() string {
	return fmt.Sprintf("%d goroutines, %d descriptors, %.1f MiB", m.goroutines, m.files, float64(m.heap)/(1<<20))
}

func measure() measured {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	names, _ := os.ReadDir("/proc/self/fd")
	return measured{runtime.NumGoroutine(), len(names), m.HeapAlloc}
}

// expected says whether an error is what a policy that goes, or is not there, does.
func (s *soaked) expected(err error) bool {
	switch {
	case err == nil:
		return true
	case errors.Is(err, syscall.ECONNREFUSED):
		s.refusals.Add(1)
		return true
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.EOF):
		s.resets.Add(1)
		return true
	}
	return s.ctx.Err() != nil
}

// to is an address of an app, of either family.
func to(a *app, v6 bool, port uint16) string {
	if v6 {
		return netip.AddrPortFrom(a.at.Address6.Addr(), port).String()
	}
	return netip.AddrPortFrom(a.addr(), port).String()
}

func (s *soaked) dial(network, address string) (c net.Conn, err error) {
	err = s.web.ns.Do(func() error {
		d := net.Dialer{Timeout: standstill}
		c, err = d.DialContext(s.Context(), network, address) // one that the end finds on its way may end by itself
		return err
	})
	return c, err
}

// connection makes one, uses it, and ends it.
func (s *soaked) connection(db *app, _ int) error {
	c, err := s.dial("tcp", to(db, rand.IntN(2) == 0, 5432))
	if err == nil {
		defer c.Close()
		s.conns.Add(1)
		_ = c.SetDeadline(time.Now().Add(standstill))
		b := make([]byte, 1+rand.IntN(3000))
		if _, err = c.Write(b); err == nil {
			_, err = io.ReadFull(c, b)
		}
	}
	if !s.expected(err) {
		return fmt.Errorf("connection to %s: %w", db.id, err)
	}
	return nil
}

// bulk keeps one connection busy as long as it lives.
func (s *soaked) bulk(db *app) error {
	c, err := s.dial("tcp", to(db, false, 80))
	if err != nil {
		if !s.expected(err) {
			return fmt.Errorf("bulk to %s: %w", db.id, err)
		}
		pause(s.ctx, 20*time.Millisecond)
		return nil
	}
	defer c.Close()
	b := make([]byte, 128<<10)
	for s.ctx.Err() == nil {
		_ = c.SetDeadline(time.Now().Add(standstill))
		if _, err = c.Write(b); err == nil {
			_, err = io.ReadFull(c, b)
		}
		if err != nil {
			if !s.expected(err) {
				return fmt.Errorf("bulk to %s: %w", db.id, err)
			}
			return nil
		}
		s.bytes.Add(int64(2 * len(b)))
		pause(s.ctx, 5*time.Millisecond)
	}
	return nil
}

// datagram asks with one, small or in fragments; it may be lost.
func (s *soaked) datagram(db *app) error {
	c, err := s.dial("udp", to(db, rand.IntN(2) == 0, 53))
	if err != nil {
		return err
	}
	defer c.Close()
	for range 20 {
		b := make([]byte, 1+rand.IntN(8000))
		s.datagrams.Add(1)
		_ = c.SetDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err = c.Write(b); err == nil {
			_, err = c.Read(b)
		}
		if err == nil {
			s.answered.Add(1)
		} else if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, syscall.EMSGSIZE) && !s.expected(err) {
			return fmt.Errorf("datagram to %s: %w", db.id, err)
		}
		pause(s.ctx, 5*time.Millisecond)
	}
	return nil
}

// forbidden tries what no policy ever allows.
func (s *soaked) forbidden() error {
	db := s.dbs[rand.IntN(2)]
	c, err := s.dial("tcp", to(db, rand.IntN(2) == 0, 9999))
	if err == nil {
		c.Close()
		return fmt.Errorf("%s was reached on a port that no policy names", db.id)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) && s.ctx.Err() == nil {
		return fmt.Errorf("a forbidden connection to %s: %w", db.id, err)
	}
	s.refusals.Add(1)
	pause(s.ctx, 10*time.Millisecond)
	return nil
}

// policy takes one away, and gives it back.
func (s *soaked) policy() error {
	all := []policy.Policy{tcp("web", "db", 5432), udpPolicy("web", "db", 53), tcp("web", "db", 80)}
	p := []policy.Policy{all[rand.IntN(len(all))]}
	if _, err := s.p.store.RemovePolicies(s.Context(), p); err != nil {
		return err
	}
	pause(s.ctx, 100*time.Millisecond)
	if _, err := s.p.store.AddPolicies(s.Context(), p); err != nil {
		return err
	}
	s.changes.Add(2)
	pause(s.ctx, time.Second)
	return nil
}

// container attaches one more, and detaches it.
func (s *soaked) container() error {
	c := []*cell{s.one, s.two}[rand.IntN(2)]
	var file *os.File
	// Always the same namespace: the device goes with its last descriptor.
	if err := s.more.Do(func() (err error) { file, err = netcfg.CreateTUN("eth0", 1390); return err }); err != nil {
		return err
	}
	defer file.Close()
	client, err := control.Dial(c.cfg.Socket)
	if err != nil {
		return err
	}
	defer client.Close()
	id := fmt.Sprint("more-", s.attaches.Add(1))
	if _, err := client.Attach(s.Context(), c.request(id, "db", control.LifelineNone), file, nil); err != nil {
		return err
	}
	pause(s.ctx, 200*time.Millisecond)
	if err := client.Detach(s.Context(), control.Detach{Container: id}); err != nil {
		return err
	}
	pause(s.ctx, time.Second)
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func udpPolicy(src, dst policy.AppID, port uint16) policy.Policy {
	return policy.Policy{Source: src, Destination: dst, Protocol: policy.UDP, Ports: policy.PortRange{Start: port, End: port}}
}

// echoUDP answers every datagram with itself.
func (a *app) echoUDP(at netip.Addr, port uint16) {
	a.Helper()
	var c net.PacketConn
	err := a.ns.Do(func() (err error) {
		c, err = net.ListenPacket("udp", netip.AddrPortFrom(at, port).String())
		return err
	})
	if err != nil {
		a.Fatal(err)
	}
	a.Cleanup(func() { _ = c.Close() })
	go func() {
		b := make([]byte, 65535)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(b[:n], from)
		}
	}()
}
