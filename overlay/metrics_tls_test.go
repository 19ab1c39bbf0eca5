package overlay

import (
	"context"
	"fmt"
	"testing"

	"tulle/overlay/control"
)

// The page has how many containers a proxy serves, whether there is one, and how
// their certificates are.
func TestTLSOnTheMetricsPage(t *testing.T) {
	p := newPlane(t)
	c := p.cell("a", "127.0.0.1", nil)
	p.allow(tcp("web", "db", control.TLSPort))
	value := func(name string) float64 {
		t.Helper()
		families, err := c.daemon.metrics.registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, m := range f.Metric {
				full := f.GetName()
				for _, l := range m.Label {
					full += fmt.Sprintf("{%s=%q}", l.GetName(), l.GetValue())
				}
				if full == "tulle_cell_"+name {
					return m.GetGauge().GetValue() + m.GetCounter().GetValue()
				}
			}
		}
		return -1
	}
	check := func(when string, want map[string]float64) {
		t.Helper()
		for name, v := range want {
			eventually(t, fmt.Sprintf("%s: %s %v", when, name, v), func() bool { return value(name) == v })
		}
	}
	check("nobody", map[string]float64{"tls_containers": 0, "tls_proxies": 0, "certificates": 0, "certificate_not_after_timestamp_seconds": -1})
	c.secured("db-0", "db", control.LifelineConnection)
	db, _ := c.secured("db-1", "db", control.LifelineConnection)
	check("two containers", map[string]float64{"tls_containers": 2, "tls_proxies": 0, "certificates": 2, `certificate_renewals_total{result="renewed"}`: 2, `certificate_renewals_total{result="failed"}`: 0})
	if at, want := value("certificate_not_after_timestamp_seconds"), c.daemon.identity.Earliest(); want.IsZero() || at != float64(want.Unix()) {
		t.Errorf("the first certificate expires at %v, want %v", at, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	proxy := c.client()
	list, err := proxy.TLSList(ctx, control.TLSList{})
	if err != nil {
		t.Fatal(err)
	}
	asking := make(chan struct{})
	go func() {
		defer close(asking)
		_, _ = proxy.TLSList(ctx, control.TLSList{Version: list.Version})
	}()
	check("a proxy waits for changes", map[string]float64{"tls_proxies": 1})
	_ = db.conn.Close()
	<-asking
	check("one ended", map[string]float64{"tls_containers": 1, "tls_proxies": 0, "certificates": 1})
}
