package tlsproxy

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// result is how a connection ended: a label of bounded values.
type result string

const (
	completed       result = "completed"           // both halves ended in order
	aborted         result = "aborted"             // one side cut it
	idle            result = "idle"                // silent for too long
	drainedLate     result = "cut_by_drain"        // still there at the end of a drain
	siteGone        result = "container_gone"      // its container ended
	notTLS          result = "not_tls"             // the first bytes are no TLS
	slowHandshake   result = "handshake_timeout"   // half open, or slower than may be
	abandoned       result = "handshake_abandoned" // the client left in the handshake
	handshakeFailed result = "handshake_failed"    // too old, no cipher in common, oversize, nonsense
	clientRefused   result = "client_refused"      // no client certificate, or not the right one
	unknownCaller   result = "unknown_caller"      // the cell does not know who it is
	noCertificate   result = "no_certificate"      // there is none for the container yet
	backendDown     result = "backend_unreachable" // the app does not listen
	badRequest      result = "bad_request"         // HTTP that may be read in two ways
	overLimit       result = "over_limit"          // too many at once
)

var results = []result{completed, aborted, idle, drainedLate, siteGone, notTLS, slowHandshake, abandoned,
	handshakeFailed, clientRefused, unknownCaller, noCertificate, backendDown, badRequest, overLimit}

type counters struct {
	accepted             atomic.Uint64
	ends                 [15]atomic.Uint64 // by index in results
	fromClient, toClient atomic.Uint64
	handshakes           prometheus.Histogram
}

func (m *counters) ended(r result) {
	for i, known := range results {
		if r == known {
			m.ends[i].Add(1)
		}
	}
}

func (m *counters) shook(began time.Time) { m.handshakes.Observe(time.Since(began).Seconds()) }

func newHandshakes() prometheus.Histogram {
	return prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "tulle_tlsproxy_handshake_duration_seconds",
		Help:    "Time of a successful TLS handshake, the connection to the app included.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
	})
}

var (
	descAccepted = prometheus.NewDesc("tulle_tlsproxy_connections_accepted_total", "Connections accepted.", nil, nil)
	descEnded    = prometheus.NewDesc("tulle_tlsproxy_connections_ended_total", "Connections ended, by how.", []string{"result"}, nil)
	descOpen     = prometheus.NewDesc("tulle_tlsproxy_connections", "Connections open now.", nil, nil)
	descBytes    = prometheus.NewDesc("tulle_tlsproxy_carried_bytes_total", "Bytes inside TLS carried, by the side they came from.", []string{"from"}, nil)
	descSites    = prometheus.NewDesc("tulle_tlsproxy_containers", "Containers whose TLS is terminated.", nil, nil)
	descReloads  = prometheus.NewDesc("tulle_tlsproxy_certificate_reloads_total", "Changes of the certificate files seen, by whether the new pair was taken.", []string{"result"}, nil)
	descNotAfter = prometheus.NewDesc("tulle_tlsproxy_certificate_not_after_timestamp_seconds", "When the first of the certificates in use expires, in seconds since 1970.", nil, nil)
)

// Certificates is what is exposed of where certificates come from: certs.Files,
// or the cell.
type Certificates interface {
	Reloads() (taken, refused uint64)
	NotAfter() time.Time
}

// Collector exposes a proxy and its certificate to Prometheus.
func (p *Proxy) Collector(c Certificates) prometheus.Collector { return collector{p, c} }

type collector struct {
	p            *Proxy
	certificates Certificates
}

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descAccepted, descEnded, descOpen, descSites, descBytes, descReloads, descNotAfter} {
		ch <- d
	}
	c.p.metrics.handshakes.Describe(ch)
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	m := &c.p.metrics
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
	}
	count(descAccepted, m.accepted.Load())
	for i, r := range results {
		count(descEnded, m.ends[i].Load(), string(r))
	}
	gauge(descOpen, float64(c.p.Open()))
	gauge(descSites, float64(c.p.Sites()))
	count(descBytes, m.fromClient.Load(), "client")
	count(descBytes, m.toClient.Load(), "app")
	taken, refused := c.certificates.Reloads()
	count(descReloads, taken, "taken")
	count(descReloads, refused, "refused")
	if at := c.certificates.NotAfter(); !at.IsZero() {
		gauge(descNotAfter, float64(at.Unix()))
	}
	m.handshakes.Collect(ch)
}
