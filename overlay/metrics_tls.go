package overlay

import "github.com/prometheus/client_golang/prometheus"

// tlsMetrics are about the termination of TLS as the daemon sees it; connections
// are the proxy's to count.
type tlsMetrics struct {
	d                                              *Daemon
	containers, proxies, certs, renewals, notAfter *prometheus.Desc
}

func newTLSMetrics(d *Daemon) *tlsMetrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("tulle_cell_"+name, help, labels, nil)
	}
	return &tlsMetrics{d: d,
		containers: desc("tls_containers", "Containers whose port 61443 is a proxy's."),
		proxies:    desc("tls_proxies", "Proxies connected; without one port 61443 refuses."),
		certs:      desc("certificates", "Certificates of containers kept."),
		renewals:   desc("certificate_renewals_total", "Certificates of containers asked for, by what came of it.", "result"),
		notAfter:   desc("certificate_not_after_timestamp_seconds", "When the first of the containers' certificates expires, in seconds since 1970."),
	}
}

// Describe implements prometheus.Collector.
func (m *tlsMetrics) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, ch) }

// Collect implements prometheus.Collector.
func (m *tlsMetrics) Collect(ch chan<- prometheus.Metric) {
	l := m.d.life.Load()
	if l == nil {
		return
	}
	gauge := func(d *prometheus.Desc, v float64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
	}
	l.terminals.mu.Lock()
	containers, proxies := len(l.terminals.of), l.terminals.proxies
	l.terminals.mu.Unlock()
	gauge(m.containers, float64(containers))
	gauge(m.proxies, float64(proxies))
	gauge(m.certs, float64(m.d.identity.Len()))
	renewed, failed := m.d.identity.Counts()
	for result, n := range map[string]uint64{"renewed": renewed, "failed": failed} {
		ch <- prometheus.MustNewConstMetric(m.renewals, prometheus.CounterValue, float64(n), result)
	}
	if first := m.d.identity.Earliest(); !first.IsZero() {
		gauge(m.notAfter, float64(first.Unix()))
	}
}
