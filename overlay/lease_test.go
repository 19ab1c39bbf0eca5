package overlay

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"tulle/overlay/control"
	"tulle/policy"
)

// shifted is the host's clock, set forward by the test.
type shifted struct {
	bootClock
	mu    sync.Mutex
	ahead time.Duration
}

func (s *shifted) Boot() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bootClock.Boot() + s.ahead
}

func (s *shifted) Wall() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bootClock.Wall().Add(s.ahead)
}

func (s *shifted) forward(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ahead += d
}

// The host slept longer than its lease, and the server is away: nothing passes
// any more, from this host's own clock alone. With the server comes the lease,
// and with the attachers their endpoints.
func TestFence(t *testing.T) {
	p := newPlane(t)
	clock := &shifted{}
	one := p.cell("one", "127.0.0.1", func(c *Config) { c.Clock = clock })
	p.allow(tcp("web", "db", 5432))
	web, db := one.attach("web-1", "web", control.LifelineNone), one.attach("db-1", "db", control.LifelineNone)
	db.listen(5432)
	web.reaches(db, 5432)
	p.stop()
	clock.forward(59 * time.Minute)
	web.reaches(db, 5432)
	clock.forward(2 * time.Minute)
	eventually(t, "nothing passes without a lease", func() bool {
		c, err := web.dial(db, 5432, 200*time.Millisecond)
		if err == nil {
			_ = c.Close()
		}
		return err != nil && one.daemon.life.Load() == nil
	})
	p.start()
	web.reaches(db, 5432)
	if s := one.status(); len(s.Endpoints) != 2 || s.Endpoints[0].Address != db.addr() {
		t.Errorf("endpoints: %+v", s.Endpoints)
	}
}

func TestMetrics(t *testing.T) {
	p := newPlane(t)
	one := p.cell("one", "127.0.0.1", func(c *Config) { c.Metrics = "127.0.0.1:0" })
	p.allow(tcp("web", "db", 5432), policy.Policy{Source: "db", Destination: "web", Protocol: policy.UDP, Ports: policy.PortRange{Start: 1, End: 9}})
	web, db := one.attach("web-1", "web", control.LifelineConnection), one.attach("db-1", "db", control.LifelineNone)
	db.listen(5432)
	web.reaches(db, 5432)
	web.refused(db, 80)
	problems, err := testutil.GatherAndLint(one.daemon.metrics.registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	run, address, err := one.daemon.metrics.serve(t.Context(), "127.0.0.1:0", one.cfg.Log)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- run(t.Context()) }()
	answer, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	page, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		`tulle_cell_endpoints{state="attached"} 2`,
		`tulle_cell_policies 2`,
		`tulle_cell_watch_connected 1`,
		`tulle_cell_holder_descriptors 1`,
		`tulle_cell_addresses{state="in_use"} 2`,
		`tulle_cell_drops_total{direction="egress",reason="no_policy"} 1`,
		`tulle_cell_attach_seconds_count{result="ok"} 2`,
	} {
		if !strings.Contains(string(page), line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
}
