package overlay

import (
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"tulle/overlay/control"
	"tulle/policy"
	"tulle/policy/hub"
)

// link is a cell's way to the policy server, which can be cut: what is open stays
// open, and not a byte gets through, either way.
type link struct {
	at    string
	mu    sync.Mutex    // guards what follows
	open  chan struct{} // closed while bytes pass
	conns []net.Conn
}

func newLink(t *testing.T, to string) *link {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k := &link{at: l.Addr().String(), open: make(chan struct{})}
	close(k.open)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				_ = near.Close()
				continue
			}
			k.mu.Lock()
			k.conns = append(k.conns, near, far)
			k.mu.Unlock()
			wg.Go(func() { k.copy(near, far) })
			wg.Go(func() { k.copy(far, near) })
		}
	})
	t.Cleanup(func() {
		k.mend()
		_ = l.Close()
		k.mu.Lock()
		for _, c := range k.conns {
			_ = c.Close()
		}
		k.mu.Unlock()
		wg.Wait()
	})
	return k
}

func (k *link) copy(to, from net.Conn) {
	defer to.Close()
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		k.mu.Lock()
		open := k.open
		k.mu.Unlock()
		<-open
		if _, werr := to.Write(b[:n]); err != nil || werr != nil {
			return
		}
	}
}

func (k *link) cut() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.open = make(chan struct{})
}

func (k *link) mend() {
	k.mu.Lock()
	defer k.mu.Unlock()
	select {
	case <-k.open:
	default:
		close(k.open)
	}
}

// TestLostCell: a cell of which nothing is heard for three heartbeats is out of what
// every other cell answers, names and addresses, though it runs and its connections
// do; and back when it is heard of.
func TestLostCell(t *testing.T) {
	needDig(t)
	const (
		beat   = time.Second
		silent = 3 * beat
		judged = 50 * time.Millisecond
	)
	p := newPlaneWith(t, 24, hub.Options{LiveFor: time.Second, Heartbeat: 100 * time.Millisecond, SilentAfter: silent, JudgeEvery: judged})
	beats := func(c *Config) { c.Client.AckEvery = beat }
	one, two := p.cell("one", "127.0.0.1", beats), p.cell("two", "127.0.0.2", beats)
	way := newLink(t, p.addr)
	three := p.cell("three", "127.0.0.3", func(c *Config) { beats(c); c.Server = "https://" + way.at })
	web := one.attach("web-1", "web", control.LifelineConnection)
	other := two.attach("other-1", "other", control.LifelineConnection)
	numbered := func(index string) func(*control.Attach) { return func(r *control.Attach) { r.Instance = index } }
	lives := two.attachWith("back-0", "back", control.LifelineConnection, numbered("0"))
	lost := three.attachWith("back-1", "back", control.LifelineConnection, numbered("1"))
	if _, err := p.store.AddRoutes(t.Context(), []policy.Route{{Name: "back.apps.internal", App: "back"}}, nil); err != nil {
		t.Fatal(err)
	}
	p.allow(tcp("web", "back", 8080))
	lost.listen(8080)
	open := web.reaches(lost, 8080)
	both := []string{lives.addr().String(), lost.addr().String()}
	slices.Sort(both)
	found := func(what string) {
		t.Helper()
		for _, a := range []*app{web, other, lost} {
			eventually(t, what+" by "+a.id, func() bool { return slices.Equal(a.short("back.apps.internal"), both) })
		}
	}
	found("both are found")

	way.cut()
	since := time.Now()
	leaves(t, since, silent+judged+time.Second, "back.apps.internal", lost.addr(), web, other)
	// The last sign of life was at most a beat before, or late by another.
	if took := time.Since(since); took < silent-2*beat {
		t.Errorf("lost after %s, which is no three heartbeats of %s", took, beat)
	}
	for _, a := range []*app{web, other} {
		if got := a.short("back.apps.internal"); !slices.Equal(got, []string{lives.addr().String()}) {
			t.Errorf("%s is told %v, want the instance that lives", a.id, got)
		}
		a.digSays([]string{"1.back.apps.internal"}, "status: NXDOMAIN")
		a.digSays([]string{"-x", lost.addr().String()}, "status: NXDOMAIN")
	}
	if got := lost.short("back.apps.internal"); !slices.Equal(got, both) {
		t.Errorf("on the lost cell itself: %v, want %v, what it was told last", got, both)
	}
	// It is names alone that are judged by signs of life.
	web.echo(open)
	web.reaches(lost, 8080)

	way.mend()
	found("both are found again")
}
