// Package metrics is the policy server's numbers for Prometheus: requests, the
// store's operations, and, read at each scrape, what is stored and who watches.
//
// The server reports to a Metrics from its handlers' goroutines; the program
// that starts the server makes the one and hands it to the other. Labels come
// from fixed lists (handlers, statuses that are sent, operations of the store),
// never from a request.
package metrics

import (
	"context"
	"net/http"
	"runtime"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"tulle/policy/server"
	"tulle/policy/store"
)

// Metrics is a server.Meter over a registry of its own.
type Metrics struct {
	registry  *prometheus.Registry
	requests  *prometheus.CounterVec
	durations *prometheus.HistogramVec
	storeOps  *prometheus.HistogramVec
}

// New makes the metrics of one server.
func New() *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tulle_policy_server_requests_total",
			Help: "Requests answered, by API, handler and status.",
		}, []string{"api", "handler", "code"}),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "tulle_policy_server_request_duration_seconds",
			Help:    "Time to answer a request, by API and handler. Watch streams, which stay open, are not in it.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"api", "handler"}),
		storeOps: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "tulle_policy_store_operation_duration_seconds",
			Help:    "Time of the store's operations, by result: ok, refused (the request was at fault) or error.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"operation", "result"}),
	}
	m.registry.MustRegister(m.requests, m.durations, m.storeOps, buildInfo(),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Operation observes one operation of the store.
func (m *Metrics) Operation(operation, result string, took time.Duration) {
	m.storeOps.WithLabelValues(operation, result).Observe(took.Seconds())
}

// Watch adds what is read at each scrape: the store's counts and the watchers.
// It may be called once.
func (m *Metrics) Watch(s store.Store, t server.Tracker) {
	m.registry.MustRegister(&stateCollector{s, t})
}

// Gatherer reads all of it.
func (m *Metrics) Gatherer() prometheus.Gatherer { return m.registry }

// Handler serves the metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: m.registry})
}

// Request counts and times a request.
func (m *Metrics) Request(site, handler string, status int, took time.Duration) {
	m.requests.WithLabelValues(site, handler, strconv.Itoa(status)).Inc()
	if handler != server.HandlerWatch {
		m.durations.WithLabelValues(site, handler).Observe(took.Seconds())
	}
}

func buildInfo() prometheus.Collector {
	version, revision := "unknown", "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		version = info.Main.Version
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				revision = s.Value
			}
		}
	}
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "tulle_policy_server_build_info",
		Help:        "Always 1; the labels say what was built.",
		ConstLabels: prometheus.Labels{"version": version, "revision": revision, "goversion": runtime.Version()},
	})
	g.Set(1)
	return g
}

// stateCollector reads what is stored and who watches when it is scraped, so
// that no number can be stale.
type stateCollector struct {
	store   store.Store
	tracker server.Tracker
}

// scrapeTimeout bounds the reading: a scrape without the store's numbers is
// better than none.
const scrapeTimeout = 5 * time.Second

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	descUp        = describe("tulle_policy_store_up", "1 if the database answered this scrape.")
	descInfo      = describe("tulle_policy_store_info", "Always 1; the label is the store's epoch.", "epoch")
	descRevision  = describe("tulle_policy_revision", "Revision of the store: changes committed in this epoch.")
	descPolicies  = describe("tulle_policies", "Policies stored.")
	descTags      = describe("tulle_policy_tags", "Apps that have a tag: those in a policy.")
	descResting   = describe("tulle_policy_tags_resting", "Tags that were released and may not be given again before every cell knows.")
	descTagLimit  = describe("tulle_policy_tags_limit", "Apps that can have a tag at one time.")
	descSubnets   = describe("tulle_lease_subnets", "Subnets of the overlay network, by state: used or free.", "state")
	descEndpoints = describe("tulle_policy_endpoints", "Containers registered by their cells.")
	descApps      = describe("tulle_policy_apps", "Apps in the registry.")
	descWatchers  = describe("tulle_policy_watchers", "Watch streams open at this server.")
	descLag       = describe("tulle_policy_watch_lag_revisions", "Revisions that the slowest watching cell has not acknowledged.")
)

func (c *stateCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descUp, descInfo, descRevision, descPolicies, descTags, descResting, descTagLimit,
		descSubnets, descEndpoints, descApps, descWatchers, descLag} {
		ch <- d
	}
}

func (c *stateCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(descInfo, 1, string(c.store.Epoch()))
	gauge(descWatchers, float64(c.tracker.Watchers()))
	gauge(descLag, float64(c.tracker.Lag()))

	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	s, err := c.store.Stats(ctx)
	if err != nil {
		gauge(descUp, 0)
		return
	}
	gauge(descUp, 1)
	gauge(descRevision, float64(s.Revision))
	gauge(descPolicies, float64(s.Policies))
	gauge(descTags, float64(s.Tags))
	gauge(descResting, float64(s.Resting))
	gauge(descTagLimit, float64(s.TagLimit))
	gauge(descSubnets, float64(s.Leases), "used")
	gauge(descSubnets, float64(s.LeasePool-s.Leases), "free")
	gauge(descEndpoints, float64(s.Endpoints))
	gauge(descApps, float64(s.Apps))
}
