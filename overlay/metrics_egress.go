package overlay

import "github.com/prometheus/client_golang/prometheus"

// egressMetrics reads what left the overlay, and came in by forwards, when the page
// is read.
type egressMetrics struct {
	d                                                   *Daemon
	open, forwards, begun, verdicts, cut, failed, lines *prometheus.Desc
}

func newEgressMetrics(d *Daemon) *egressMetrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("tulle_cell_egress_"+name, help, labels, nil)
	}
	return &egressMetrics{
		d:        d,
		open:     desc("conversations", "Conversations with the outside that are open, those of forwards included."),
		forwards: desc("forwards", "Ports of this host that lead to containers."),
		begun:    desc("conversations_total", "Conversations that containers began with the outside, by protocol.", "protocol"),
		verdicts: desc("verdicts_total", "Verdicts on conversations with the outside.", "verdict"),
		cut:      desc("cut_total", "Conversations ended because rules or cells changed."),
		failed:   desc("failed_total", "Conversations that were allowed and could not be begun."),
		lines:    prometheus.NewDesc("tulle_cell_traffic_log_lines_total", "Lines of the traffic log: written, or not for the reason.", []string{"result"}, nil),
	}
}

// Describe implements prometheus.Collector.
func (m *egressMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.open, m.forwards, m.begun, m.verdicts, m.cut, m.failed, m.lines} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. Between two lives there is nothing.
func (m *egressMetrics) Collect(ch chan<- prometheus.Metric) {
	l := m.d.life.Load()
	if l == nil {
		return
	}
	s := l.outside.e.Stats()
	gauge := func(d *prometheus.Desc, v int) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v))
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(m.open, s.Open)
	gauge(m.forwards, s.Forwards)
	for protocol, n := range s.Begun {
		counter(m.begun, n, protocol)
	}
	for verdict, n := range s.Verdicts {
		counter(m.verdicts, n, verdict)
	}
	counter(m.cut, s.Cut)
	counter(m.failed, s.Failed)
	t := l.outside.traffic.stats()
	for result, n := range map[string]uint64{"written": t.Written, "limited": t.Limited, "lost": t.Lost, "failed": t.Failed} {
		counter(m.lines, n, result)
	}
}
