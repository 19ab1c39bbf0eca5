package server

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"time"

	"tulle/policy/route"
	"tulle/policy/store"
)

// Discovery is the original's service discovery: route emitters over NATS, and the
// lookup API that DNS adapters ask.
type Discovery struct {
	Listener *route.Listener // nil: nobody is heard
	Address  string          // host:port of the lookup API; "": not served
	TLS      *tls.Config     // needed with Address
	Warm     time.Duration   // how long a server that hears NATS and had nothing stored sends clients away; route.DefaultWarm
}

// lookup is the lookup API. A server that has registered routes from before, or
// that hears of none, is warm at once.
func (s *Server) lookup(ctx context.Context) (http.Handler, error) {
	d := s.options.Discovery
	if d.TLS == nil {
		return nil, errors.New("no TLS configuration")
	}
	var warm time.Time
	if d.Listener != nil {
		stored, err := s.store.Routes(ctx, store.RouteFilter{})
		if err != nil {
			return nil, err
		}
		registered := false
		for _, r := range stored {
			registered = registered || r.Address.IsValid()
		}
		if d.Warm == 0 {
			d.Warm = route.DefaultWarm
		}
		if !registered {
			warm = s.started.Add(d.Warm)
		}
	}
	inner := route.Lookup(s.internal.Directory(), warm, time.Now)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.instrument("discovery", route.IsLookup(r.URL.Path), inner).ServeHTTP(w, r)
	}), nil
}
