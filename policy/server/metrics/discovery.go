package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"tulle/policy/route"
)

// Hear adds what comes over NATS. It may be called once.
func (m *Metrics) Hear(l *route.Listener) { m.registry.MustRegister(natsCollector{l}) }

type natsCollector struct{ listener *route.Listener }

var (
	natsMessages  = prometheus.NewDesc("tulle_policy_nats_messages_total", "Messages of route emitters, by subject; malformed counts messages and names that were ignored.", []string{"subject"}, nil)
	natsConnected = prometheus.NewDesc("tulle_policy_nats_connected", "Whether NATS is there (1) or not (0).", nil, nil)
	natsRoutes    = prometheus.NewDesc("tulle_policy_nats_routes", "Registered names and addresses.", nil, nil)
	natsPruned    = prometheus.NewDesc("tulle_policy_nats_pruned_total", "Registrations that were not repeated and went.", nil, nil)
)

// Describe implements prometheus.Collector.
func (natsCollector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{natsMessages, natsConnected, natsRoutes, natsPruned} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (c natsCollector) Collect(to chan<- prometheus.Metric) {
	n := c.listener.Counts()
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	counter(natsMessages, n.Registers, "register")
	counter(natsMessages, n.Unregisters, "unregister")
	counter(natsMessages, n.Greets, "greet")
	counter(natsMessages, n.Malformed, "malformed")
	counter(natsPruned, n.Pruned)
	connected := 0.0
	if n.Connected {
		connected = 1
	}
	to <- prometheus.MustNewConstMetric(natsConnected, prometheus.GaugeValue, connected)
	to <- prometheus.MustNewConstMetric(natsRoutes, prometheus.GaugeValue, float64(n.Routes))
}
