package overlay

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tulle/overlay/control"
	"tulle/overlay/holder"
	"tulle/overlay/netcfg/nstest"
	"tulle/policy/api"
	"tulle/policy/foundation/foundationtest"
)

// founded is a foundation with cells of ours, which all have one port.
type founded struct {
	*plane
	*foundationtest.Foundation
	port uint16
}

func newFounded(t *testing.T) *founded {
	t.Helper()
	nstest.NeedTUN(t)
	nstest.NeedNamespaces(t)
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := c.LocalAddr().(*net.UDPAddr).Port
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	return &founded{plane: &plane{T: t, dir: t.TempDir()}, Foundation: foundationtest.New(t, network), port: uint16(port)}
}

func (f *founded) cell(name, underlay string, change func(*Config)) *cell {
	f.Helper()
	dir := filepath.Join(f.dir, name)
	o := f.Options()
	c := &cell{plane: f.plane, name: name, cfg: Config{
		Name: name, Foundation: &o, StateDir: filepath.Join(dir, "state"), Socket: filepath.Join(dir, "celld.sock"),
		Underlay: netip.MustParseAddr(underlay), Port: f.port, Resolvers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9")},
		Log: testLog(f.T, name),
	}}
	if change != nil {
		change(&c.cfg)
	}
	f.Cleanup(func() {
		c.shut()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := holder.Stop(ctx, c.cfg.StateDir); err != nil {
			f.Error(err)
		}
	})
	c.run()
	return c
}

// meet waits until two cells know each other.
func (f *founded) meet(cells ...*cell) {
	f.Helper()
	for _, c := range cells {
		c.untilStatus("knows the others", func(s control.Status) bool { return len(s.Peers) == len(cells)-1 })
	}
}

// reset waits for an idle connection to read ECONNRESET.
func (a *app) reset(c net.Conn) {
	a.Helper()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		a.Errorf("%s reads %v, want a reset", a.id, err)
	}
}

// Two cells of a foundation: refused without a policy, on one cell and across;
// allowed with it, one way; cut when it goes, at both ends.
func TestFoundationPolicies(t *testing.T) {
	f := newFounded(t)
	one, two := f.cell("one", "127.0.0.1", nil), f.cell("two", "127.0.0.2", nil)
	f.meet(one, two)
	if s := one.status(); s.Lease.String() != f.Leases.Of("127.0.0.1") || !s.Connected || s.Peers[0].Kind != api.KindSilk {
		t.Errorf("status %+v", s)
	}
	web, db, here := one.attach("web-1", "web", control.LifelineNone), two.attach("db-1", "db", control.LifelineNone), one.attach("db-2", "db", control.LifelineNone)
	for _, a := range []*app{web, db, here} {
		a.listen(5432)
	}
	if web.at.Address6.IsValid() {
		t.Errorf("web has %v, silk knows no IPv6", web.at.Address6)
	}
	web.refused(db, 5432)
	web.refused(here, 5432)
	f.Policies.Allow(tcp("web", "db", 5432))
	far, near := web.reaches(db, 5432), web.reaches(here, 5432)
	db.refused(web, 5432)
	here.refused(web, 5432)
	web.refused(db, 80)
	f.Policies.Deny(tcp("web", "db", 5432))
	web.reset(far)
	web.reset(near)
	web.refused(db, 5432)
	// The tags go to others at once; nothing of them is left to the former owners.
	f.Policies.Allow(tcp("db", "web", 5432))
	db.reaches(web, 5432)
	web.refused(db, 5432)
	web.refused(here, 5432)
}

// With both servers away the known goes on, on new connections too and through a
// start of the daemon; an app that is known has further instances, one that is not
// has none.
func TestFoundationAway(t *testing.T) {
	f := newFounded(t)
	one, two := f.cell("one", "127.0.0.1", nil), f.cell("two", "127.0.0.2", nil)
	f.meet(one, two)
	f.Policies.Allow(tcp("web", "db", 5432))
	web, db := one.attach("web-1", "web", control.LifelineNone), two.attach("db-1", "db", control.LifelineNone)
	db.listen(5432)
	c := web.reaches(db, 5432)

	f.Policies.Stop()
	f.Leases.Stop()
	one.untilStatus("has noticed", func(s control.Status) bool { return !s.Connected })
	web.echo(c)
	web.reaches(db, 5432)
	one.attach("web-2", "web", control.LifelineNone).reaches(db, 5432)
	_, dev := newTUN(t)
	_, err := one.client().Attach(t.Context(), one.request("new-1", "new", control.LifelineNone), dev, nil)
	if codeOf(err) != control.CodeUnreachable {
		t.Errorf("an app that nobody knows: %v", err)
	}
	if s := one.status(); len(s.Endpoints) != 2 {
		t.Errorf("%d endpoints, a refused attach left something", len(s.Endpoints))
	}

	// Nothing is judged, and so nothing refused, before the new daemon knows.
	one.shut()
	one.run()
	f.Leases.Start()
	one.untilStatus("has its lease and endpoints", func(s control.Status) bool { return len(s.Endpoints) == 2 && !s.Connected })
	f.Policies.Start()
	web.echo(c)
	web.reaches(db, 5432)
	f.Policies.Allow(tcp("web", "db", 5433))
	db.listen(5433)
	web.reaches(db, 5433)
}

// The lease goes to another while the cell is away from the controller: its
// containers end with it, and it goes on with the next.
func TestFoundationLeaseLost(t *testing.T) {
	f := newFounded(t)
	one := f.cell("one", "127.0.0.1", nil)
	f.Policies.Allow(tcp("web", "db", 5432))
	web := one.attach("web-1", "web", control.LifelineNone)
	lease := one.status().Lease
	f.Leases.Stop()
	f.Leases.Drop("127.0.0.1")
	f.Leases.Put(foundationtest.Entry("127.0.0.9", lease))
	f.Leases.Start()
	eventually(t, "the cell has another lease", func() bool {
		l := one.daemon.life.Load()
		return l != nil && l.lease.Subnet != lease
	})
	s := one.status()
	if len(s.Endpoints) != 0 || s.Lease.String() != f.Leases.Of("127.0.0.1") {
		t.Errorf("%+v; %s at %v must be gone", s, web.id, web.addr())
	}
	one.untilStatus("knows who has its former lease", func(s control.Status) bool { return len(s.Peers) == 1 && s.Peers[0].Subnet == lease })
	if next := one.attach("web-2", "web", control.LifelineNone); !s.Lease.Contains(next.addr()) {
		t.Errorf("web-2 is at %v, the lease is %v", next.addr(), s.Lease)
	}
}

// A controller that is away for longer than a lease lives: the cell gives its
// lease up by its own clock, and has it again when the controller is back.
func TestFoundationLeaseRunsOut(t *testing.T) {
	f := newFounded(t)
	clock := &shifted{}
	one := f.cell("one", "127.0.0.1", func(c *Config) { c.Clock = clock })
	f.Policies.Allow(tcp("web", "db", 5432))
	web, db := one.attach("web-1", "web", control.LifelineNone), one.attach("db-1", "db", control.LifelineNone)
	db.listen(5432)
	web.reaches(db, 5432)
	f.Leases.Stop()
	clock.forward(167 * time.Hour)
	web.reaches(db, 5432)
	clock.forward(2 * time.Hour)
	eventually(t, "nothing passes without a lease", func() bool {
		c, err := web.dial(db, 5432, 200*time.Millisecond)
		if err == nil {
			_ = c.Close()
		}
		return err != nil && one.daemon.life.Load() == nil
	})
	f.Leases.Start()
	web.reaches(db, 5432)
}

// The controller has lost its data and takes every lease back from its cell: a
// cell that is slow to come is unknown to the others for so long, and then known
// again under the same lease.
func TestFoundationControllerLosesItsData(t *testing.T) {
	f := newFounded(t)
	one, two := f.cell("one", "127.0.0.1", nil), f.cell("two", "127.0.0.2", nil)
	f.meet(one, two)
	leases := []netip.Prefix{one.status().Lease, two.status().Lease}
	f.Policies.Allow(tcp("web", "db", 5432))
	web, db := one.attach("web-1", "web", control.LifelineNone), two.attach("db-1", "db", control.LifelineNone)
	db.listen(5432)
	web.reaches(db, 5432)
	f.Leases.Lose()
	eventually(t, "both leases are known again", func() bool {
		return f.Leases.Of("127.0.0.1") == leases[0].String() && f.Leases.Of("127.0.0.2") == leases[1].String()
	})
	f.meet(one, two)
	web.reaches(db, 5432)
	if one.status().Lease != leases[0] || two.status().Lease != leases[1] {
		t.Error("a lease is another")
	}
}

// A cell that goes gives its lease back, but not under its containers, nor under its
// daemon; should it start again, it asks first.
func TestRelease(t *testing.T) {
	f := newFounded(t)
	one := f.cell("one", "127.0.0.1", nil)
	f.Policies.Allow(tcp("web", "db", 5432))
	web := one.attach("web-1", "web", control.LifelineNone)
	lease := one.status().Lease
	if _, err := Release(t.Context(), one.cfg); err == nil {
		t.Error("released under a daemon that runs")
	}
	one.shut()
	if _, err := Release(t.Context(), one.cfg); !errors.Is(err, ErrAttached) {
		t.Errorf("%v, want a word about %s", err, web.id)
	}
	if f.Leases.Of("127.0.0.1") != lease.String() {
		t.Error("the lease is gone with a container on it")
	}
	one.run()
	if err := one.client().Detach(t.Context(), control.Detach{Container: "web-1"}); err != nil {
		t.Fatal(err)
	}
	one.shut()
	if got, err := Release(t.Context(), one.cfg); err != nil || got != lease || f.Leases.Of("127.0.0.1") != "" {
		t.Errorf("released %v, %v; the controller has %q", got, err, f.Leases.Of("127.0.0.1"))
	}
	f.Leases.Put(foundationtest.Entry("127.0.0.9", lease))
	one.run()
	if s := one.status(); s.Lease == lease || s.Lease.String() != f.Leases.Of("127.0.0.1") {
		t.Errorf("started with %v, which is another's", s.Lease)
	}
}

func TestFoundationConfig(t *testing.T) {
	f := newFounded(t)
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"both":         {func(c *Config) { c.Server = "https://127.0.0.1:1" }, "neither server nor credentials"},
		"encrypted":    {func(c *Config) { c.Mode = api.ModeWireGuard }, "has mode vxlan"},
		"a free port":  {func(c *Config) { c.Port = 0 }, "the foundation's port"},
		"nameless":     {func(c *Config) { c.Name = "" }, "needs a name"},
		"IPv6":         {func(c *Config) { c.Underlay = netip.IPv6Loopback() }, "underlay must be an IPv4 address"},
		"no such file": {func(c *Config) { c.Foundation.Leases.Key = "none" }, "silk-controller: client certificate"},
	} {
		o := f.Options()
		cfg := Config{Name: "one", Foundation: &o, StateDir: f.dir, Underlay: netip.MustParseAddr("127.0.0.1"), Port: f.port,
			Log: testLog(t, "one"), Holder: struct{ holder.Keeper }{}}
		c.change(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
