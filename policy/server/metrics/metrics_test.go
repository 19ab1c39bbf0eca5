package metrics_test

import (
	"context"
	"errors"
	"io"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"tulle/policy/api"
	"tulle/policy/server"
	"tulle/policy/server/metrics"
	"tulle/policy/store"
)

// fixed is a store and a tracker with known numbers.
type fixed struct {
	store.Store
	err error
}

func (fixed) Epoch() api.Epoch { return "e-1" }
func (f fixed) Stats(context.Context) (store.Stats, error) {
	return store.Stats{Revision: 7, Policies: 5, Tags: 4, TagLimit: 65535, Leases: 3, LeasePool: 255, Endpoints: 2, Apps: 1}, f.err
}
func (fixed) Cell(string) server.CellStatus { return server.CellStatus{} }
func (fixed) Watchers() int                 { return 6 }
func (fixed) Lag() api.Revision             { return 9 }

func scrape(t *testing.T, m *metrics.Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	text, err := io.ReadAll(w.Result().Body)
	if err != nil || w.Code != 200 {
		t.Fatalf("scrape: %d, %v", w.Code, err)
	}
	return string(text)
}

func TestWhatIsScraped(t *testing.T) {
	m := metrics.New()
	m.Watch(fixed{}, fixed{})
	m.Request("external", "create_policies", 200, 3*time.Millisecond)
	m.Request("internal", server.HandlerWatch, 200, time.Hour)
	m.Operation("add_policies", "ok", 2*time.Millisecond)
	text := scrape(t, m)
	for _, line := range []string{
		`tulle_policy_revision 7`, `tulle_policies 5`, `tulle_policy_tags 4`, `tulle_policy_tags_limit 65535`,
		`tulle_lease_subnets{state="used"} 3`, `tulle_lease_subnets{state="free"} 252`,
		`tulle_policy_endpoints 2`, `tulle_policy_apps 1`, `tulle_policy_watchers 6`, `tulle_policy_watch_lag_revisions 9`,
		`tulle_policy_store_info{epoch="e-1"} 1`, `tulle_policy_store_up 1`,
		`tulle_policy_server_requests_total{api="external",code="200",handler="create_policies"} 1`,
		`tulle_policy_server_requests_total{api="internal",code="200",handler="watch"} 1`,
		`tulle_policy_server_request_duration_seconds_count{api="external",handler="create_policies"} 1`,
		`tulle_policy_store_operation_duration_seconds_bucket{operation="add_policies",result="ok",le="0.0025"} 1`,
		`tulle_policy_store_operation_duration_seconds_bucket{operation="add_policies",result="ok",le="0.001"} 0`,
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("not scraped: %s", line)
		}
	}
	if strings.Contains(text, `request_duration_seconds_count{api="internal",handler="watch"}`) {
		t.Error("the time of an open stream is in the histogram")
	}
	if !strings.Contains(text, "tulle_policy_server_build_info{") {
		t.Error("no build info")
	}
}

// TestBrokenStore: the rest is still served, and the fault is in it.
func TestBrokenStore(t *testing.T) {
	m := metrics.New()
	m.Watch(fixed{err: errors.New("disk on fire")}, fixed{})
	text := scrape(t, m)
	if !strings.Contains(text, "tulle_policy_store_up 0\n") || !strings.Contains(text, "tulle_policy_watchers 6\n") {
		t.Errorf("with a broken store:\n%s", text)
	}
	if strings.Contains(text, "tulle_policies ") {
		t.Error("counts policies of a store that does not answer")
	}
}

// TestConventions holds names and help texts to Prometheus' own rules.
func TestConventions(t *testing.T) {
	m := metrics.New()
	m.Watch(fixed{}, fixed{})
	m.Request("external", "tags", 200, time.Millisecond)
	m.Operation("tags", "ok", time.Millisecond)
	problems, err := testutil.GatherAndLint(m.Gatherer())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	more, err := promlint.New(strings.NewReader(scrape(t, m))).Lint()
	if err != nil || len(more) > 0 {
		t.Errorf("as scraped: %v, %v", more, err)
	}
}
