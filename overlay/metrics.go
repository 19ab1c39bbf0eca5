package overlay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"tulle/overlay/datapath"
	"tulle/policy/table"
)

// metrics is the daemon's page. What others count is read when the page is;
// only durations are gathered here.
type metrics struct {
	d        *Daemon
	registry *prometheus.Registry
	update   prometheus.Histogram
	attaches *prometheus.HistogramVec

	packets, bytes, drops, answers, limited, paced, cut, flows, policies, revision, connected, lag,
	reconnects, peers, remotes, endpoints, addresses, held, lease, lookup, queries, prohibited, names *prometheus.Desc
}

func newMetrics(d *Daemon) *metrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("tulle_cell_"+name, help, labels, nil)
	}
	m := &metrics{
		d: d, registry: prometheus.NewRegistry(),
		update: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "tulle_cell_update_seconds", Help: "Time to put one event of the policy server in force: tables published, flows cut.",
			Buckets: prometheus.ExponentialBuckets(25e-6, 4, 10),
		}),
		attaches: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "tulle_cell_attach_seconds", Help: "Time from an attach request to its answer.",
			Buckets: prometheus.ExponentialBuckets(1e-3, 2, 13),
		}, []string{"result"}),
		packets:    desc("packets_total", "Packets that passed; a super-packet counts as one.", "direction"),
		bytes:      desc("bytes_total", "Bytes that passed, IP headers included.", "direction"),
		drops:      desc("drops_total", "Packets dropped, by reason.", "direction", "reason"),
		answers:    desc("answers_total", "Refusals sent to senders of dropped packets.", "direction"),
		limited:    desc("answers_limited_total", "Refusals not sent because their source had its share.", "direction"),
		paced:      desc("paced_total", "Times a container that sent very many small packets was held back for its neighbours' sake."),
		cut:        desc("flows_cut_total", "Flows ended because a policy, an endpoint or a peer went."),
		flows:      desc("flows", "Flows in the table."),
		policies:   desc("policies", "Policies that concern this cell."),
		revision:   desc("revision", "Revision of the policy server's store that is in force here."),
		connected:  desc("watch_connected", "Whether the watch of the policy server is open (1) or not (0)."),
		lag:        desc("watch_lag_seconds", "Time since the policy server was last heard."),
		reconnects: desc("watch_reconnects_total", "Watch streams opened after the first."),
		peers:      desc("peers", "Other cells known."),
		remotes:    desc("remote_endpoints", "Containers of other cells that apps here have a policy with."),
		endpoints:  desc("endpoints", "Containers of this cell, by state.", "state"),
		addresses:  desc("addresses", "Addresses of the lease, by state.", "state"),
		held:       desc("holder_descriptors", "Descriptors kept beside the daemon."),
		lease:      desc("lease_remaining_seconds", "Time until this cell stops passing packets unless its lease is renewed."),
		lookup:     desc("lookup_seconds", "Mean time of a policy lookup, measured on rules of this cell while this page was made."),
		queries:    desc("dns_queries_total", "Queries of containers to the resolver, by what became of them.", "result"),
		prohibited: desc("dns_prohibited_total", "Internal names that were answered to a container which no policy lets reach any of their instances."),
		names:      desc("dns_names", "Internal names known."),
	}
	m.registry.MustRegister(newEgressMetrics(d), newTLSMetrics(d), m, m.update, m.attaches, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *metrics) attach(err error) prometheus.Observer {
	if err != nil {
		return m.attaches.WithLabelValues("error")
	}
	return m.attaches.WithLabelValues("ok")
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, ch) }

// lookupTime asks the table for some of its rules, in the order of the map,
// which is none.
func (l *life) lookupTime() (mean time.Duration, ok bool) {
	const sample, rounds = 64, 16
	rules := make([]table.Rule, 0, sample)
	l.mu.Lock()
	for _, r := range l.world.known {
		if r != (table.Rule{}) {
			rules = append(rules, r)
		}
		if len(rules) == sample {
			break
		}
	}
	l.mu.Unlock()
	if len(rules) == 0 {
		return 0, false
	}
	begun := time.Now()
	for range rounds {
		for _, r := range rules {
			l.world.policies.Lookup(r.Src, r.Dst, r.Protocol, r.Ports.Start)
		}
	}
	return time.Since(begun) / time.Duration(rounds*len(rules)), true
}

// Collect implements prometheus.Collector. Between two lives there is nothing
// to tell.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	l := m.d.life.Load()
	if l == nil {
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	s := l.path.Stats()
	traffic := func(direction string, t *datapath.Traffic) {
		counter(m.packets, t.Packets, direction)
		counter(m.bytes, t.Bytes, direction)
		counter(m.answers, t.Answers, direction)
		counter(m.limited, t.AnswersLimited, direction)
		for r := datapath.Passed + 1; r < datapath.NumReasons; r++ {
			counter(m.drops, t.Drops[r], direction, r.String())
		}
	}
	traffic("egress", &s.Egress)
	traffic("ingress", &s.Ingress)
	counter(m.paced, s.Egress.Paced)
	counter(m.cut, s.FlowsCut)
	gauge(m.flows, float64(s.Flows))

	if mean, ok := l.lookupTime(); ok {
		gauge(m.lookup, mean.Seconds())
	}
	l.mu.Lock()
	gauge(m.policies, float64(len(l.world.known)))
	gauge(m.revision, float64(l.world.revision))
	waiting := 0
	for _, at := range l.attached {
		if at.waiting {
			waiting++
		}
	}
	gauge(m.endpoints, float64(len(l.attached)-waiting), "attached")
	gauge(m.endpoints, float64(waiting), "waiting")
	l.mu.Unlock()
	peers, _, remotes := l.world.fib.Load().Len()
	gauge(m.peers, float64(peers))
	gauge(m.remotes, float64(remotes))
	inUse, rest, free := m.d.ledger.Addresses()
	gauge(m.addresses, float64(inUse), "in_use")
	gauge(m.addresses, float64(rest), "resting")
	gauge(m.addresses, float64(free), "free")
	gauge(m.held, float64(m.d.cfg.Holder.Len()))
	if lease, ok := m.d.ledger.Lease(); ok && lease.BootID == m.d.bootID {
		gauge(m.lease, (lease.Expires - m.d.cfg.Clock.Boot()).Seconds())
	}
	w := m.d.client.Status()
	gauge(m.connected, map[bool]float64{true: 1}[w.Connected])
	if !w.LastEvent.IsZero() {
		gauge(m.lag, time.Since(w.LastEvent).Seconds())
	}
	counter(m.reconnects, uint64(w.Reconnects))
	q := l.resolver.Stats()
	for result, n := range map[string]uint64{"answered": q.Answered, "internal": q.Internal, "failed": q.Failed, "refused": q.Refused,
		"malformed": q.Malformed, "over_source": q.OverSource, "over_queue": q.OverQueue, "late": q.Late, "cached": q.Cached, "rebinding": q.Rebinding} {
		counter(m.queries, n, result)
	}
	counter(m.prohibited, q.Prohibited)
	names, _ := l.names.Count()
	gauge(m.names, float64(names))
}

// serve binds address; the function it returns answers until its context ends.
func (m *metrics) serve(ctx context.Context, address string, log *slog.Logger) (run func(context.Context) error, bound string, err error) {
	if address == "" {
		return nil, "", nil
	}
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, "", fmt.Errorf("metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	run = func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, func() { _ = server.Close() })
		defer stop()
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("metrics: %w", err)
		}
		return nil
	}
	return run, listener.Addr().String(), nil
}
