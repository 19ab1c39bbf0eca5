package overlay

import (
	"errors"
	"os"
	"syscall"
	"testing"
	"time"

	"tulle/overlay/control"
)

func TestTwoCells(t *testing.T) {
	p := newPlane(t)
	one, two := p.cell("one", "127.0.0.1", nil), p.cell("two", "127.0.0.2", nil)
	web := one.attach("web-1", "web", control.LifelineConnection)
	near, far := one.attach("db-1", "db", control.LifelineConnection), two.attach("db-2", "db", control.LifelineConnection)
	for _, db := range []*app{near, far} {
		db.listen(5432)
		web.refused(db, 5432)
	}
	p.allow(tcp("web", "db", 5432))
	var conns []interface {
		Read([]byte) (int, error)
		SetDeadline(time.Time) error
	}
	for _, db := range []*app{near, far} {
		conns = append(conns, web.reaches(db, 5432))
		db.refused(web, 80)
	}
	// An attach answers when it is nobody's stranger any more.
	late := two.attach("db-3", "db", control.LifelineConnection)
	late.listen(5432)
	c, err := web.dial(late, 5432, time.Second)
	if err != nil {
		t.Errorf("the first packet after an attach: %v", err)
	} else {
		_ = c.Close()
	}
	p.deny(tcp("web", "db", 5432))
	for i, c := range conns {
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("idle connection %d after the policy went: %v", i, err)
		}
	}
	web.refused(near, 5432)
	web.refused(far, 5432)
}

// A plain stop or a kill: the attacher has its device, the holder the others'.
func TestRestart(t *testing.T) {
	p := newPlane(t)
	one := p.cell("one", "127.0.0.1", nil)
	p.allow(tcp("web", "db", 5432))
	web := one.attach("web-1", "web", control.LifelineConnection)
	limited := control.Bandwidth{EgressRate: 1e9, EgressBurst: 1e6}
	db := one.attachWith("db-1", "db", control.LifelineNone, func(r *control.Attach) { r.Bandwidth = limited })
	db.listen(5432)
	conn := web.reaches(db, 5432)
	before := one.status()

	one.shut()
	if _, err := os.Lstat(one.cfg.Socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket after a stop: %v", err)
	}
	<-web.conn.Done()
	one.run()
	if s := one.status(); s.Lease != before.Lease || s.Underlay != before.Underlay {
		t.Errorf("lease and underlay are %s %s, were %s %s", s.Lease, s.Underlay, before.Lease, before.Underlay)
	}
	one.untilStatus("one waits, one is back", func(s control.Status) bool {
		return len(s.Endpoints) == 2 && !s.Endpoints[0].Waiting && s.Endpoints[1].Waiting
	})
	if s := one.status(); s.Endpoints[0].Bandwidth != limited || s.Endpoints[1].Bandwidth != (control.Bandwidth{}) {
		t.Errorf("limits after the restart: %+v", s.Endpoints)
	}
	again := one.client()
	r := one.request("web-1", "web", control.LifelineConnection)
	r.Resume = true
	at, err := again.Attach(t.Context(), r, web.tun, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !at.Resumed || at.Address != web.at.Address || at.Incarnation != web.at.Incarnation {
		t.Errorf("resumed as %+v, was %+v", at, web.at)
	}
	web.echo(conn) // the connection went on
	web.conn = again

	// The end of the new lifeline is the detach, and Detach that of the other.
	_ = again.Close()
	one.untilStatus("web is gone", func(s control.Status) bool { return len(s.Endpoints) == 1 })
	if err := one.client().Detach(t.Context(), control.Detach{Container: "db-1"}); err != nil {
		t.Error(err)
	}
	if s := one.status(); len(s.Endpoints) != 0 {
		t.Errorf("after the detach: %+v", s.Endpoints)
	}
	if n := one.daemon.cfg.Holder.Len(); n != 0 {
		t.Errorf("the holder has %d", n)
	}
	if _, err := one.client().Attach(t.Context(), r, web.tun, nil); codeOf(err) != control.CodeNotFound {
		t.Errorf("resume of what is gone: %v", err)
	}
}

func TestNobodyResumes(t *testing.T) {
	p := newPlane(t)
	one := p.cell("one", "127.0.0.1", func(c *Config) { c.ResumeWait = 50 * time.Millisecond })
	one.attach("web-1", "web", control.LifelineConnection)
	one.shut()
	one.run()
	one.untilStatus("the endpoint nobody resumes ends", func(s control.Status) bool { return len(s.Endpoints) == 0 })
	eventually(t, "the server knows", func() bool {
		es, err := p.store.Endpoints(t.Context())
		return err == nil && len(es.Endpoints) == 0
	})
}
