package server

import (
	"net/http"
	"strings"
	"time"

	"tulle/policy/api"
	"tulle/policy/store"
)

// Meter takes the server's numbers; package metrics is the one for Prometheus.
// Methods are safe for concurrent use and do not block.
type Meter interface {
	// Request is told of every answer: the API (external, internal, legacy, admin), the
	// handler, from a fixed list, and the status.
	Request(api, handler string, status int, took time.Duration)
	// Operation is told of every operation of the store; result is ok, refused
	// (the request was at fault) or error.
	Operation(operation, result string, took time.Duration)
	// Watch is called once, with what can be read at any time.
	Watch(s store.Store, t Tracker)
	// Handler serves the numbers.
	Handler() http.Handler
}

// HandlerWatch is the handler of watch streams. They stay open, so how long one
// took says nothing.
const HandlerWatch = "watch"

// internalHandler names the handler of an internal path.
func internalHandler(path string) string {
	if path == api.PathWatch {
		return HandlerWatch
	}
	switch last := path[strings.LastIndexByte(path, '/')+1:]; last {
	case "lease", "endpoints", "ack", "join", "credential", "policies", "policies_last_updated", "tags",
		"security_groups", "security_groups_last_updated":
		return last
	}
	return "other"
}

// instrumentSilk counts and times the lease API's requests.
func (s *Server) instrumentSilk(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.instrument("legacy", silkHandler(r.URL.Path), h).ServeHTTP(w, r)
	})
}

// silkHandler names the handler of a path of the lease API.
func silkHandler(path string) string {
	switch path {
	case api.PathSilkLeases:
		return "leases"
	case api.PathSilkAcquire:
		return "acquire"
	case api.PathSilkRenew:
		return "renew"
	case api.PathSilkRelease:
		return "release"
	}
	return "other"
}

// instrument reports the requests of one handler.
func (s *Server) instrument(site, name string, h http.Handler) http.Handler {
	if s.options.Meter == nil {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sw := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		start := time.Now()
		h.ServeHTTP(sw, r)
		s.options.Meter.Request(site, name, sw.status, time.Since(start))
	})
}

// statusWriter remembers the status.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Flush is for streams that ask for an http.Flusher.
func (w *statusWriter) Flush() {
	// Both protocols that we serve can flush.
	_ = http.NewResponseController(w.ResponseWriter).Flush()
}

// Unwrap is for http.ResponseController.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
