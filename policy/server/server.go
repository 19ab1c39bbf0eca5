package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"tulle/policy/api"
	"tulle/policy/auth"
	"tulle/policy/hub"
	"tulle/policy/store"
)

// DefaultMaxPolicies is the original's limit of policies with one source app,
// for those who are not admin.
const DefaultMaxPolicies = 150

// Options of a server. Addresses are host:port; port 0 takes a free one.
type Options struct {
	Store store.Store        // stays the caller's, who closes it after Run
	Auth  auth.Authenticator // of the external API

	ExternalAddress string
	ExternalTLS     *tls.Config // nil: plain HTTP
	InternalAddress string
	InternalTLS     *tls.Config     // needed
	InternalOptions InternalOptions // Log is the server's
	LegacyAddress   string          // of the lease API of silk cells; "": not served
	LegacyTLS       *tls.Config     // needed with LegacyAddress
	Discovery       Discovery       // names by the original's ways
	Meter           Meter           // nil: nobody counts
	MetricsAddress  string          // "": not served
	AdminSocket     string          // path; "": none

	Directory    Directory     // nil: whoever has the scope may name any app
	SelfService  bool          // create, delete and list need no scope; needs a Directory
	CleanupEvery time.Duration // of policies whose apps the Directory does not know; DefaultCleanupEvery

	MaxPolicies        int // DefaultMaxPolicies
	AllowedCORSDomains []string

	Log *slog.Logger
}

// Server is a policy server: made by New with its sockets open, serving while
// Run runs.
type Server struct {
	options  Options
	store    store.Store // with its operations timed
	internal InternalAPI
	log      *slog.Logger
	started  time.Time
	sites    []site
	cleaning chan struct{} // holds one while a cleanup runs
}

// site is one socket and what is served there.
type site struct {
	name     string
	listener net.Listener
	server   *http.Server
}

// Addresses are where a server really listens.
type Addresses struct {
	External string `json:"external"`
	Internal string `json:"internal"`
	Legacy   string `json:"legacy,omitempty"`
	Lookup   string `json:"discovery,omitempty"` // the service-discovery-controller's API
	Metrics  string `json:"metrics,omitempty"`
	Admin    string `json:"admin,omitempty"` // path of the admin socket
}

const (
	readHeaderTimeout = 10 * time.Second
	readTimeout       = time.Minute // a body of 10 MiB over a slow line
	idleTimeout       = 2 * time.Minute
	shutdownTimeout   = 5 * time.Second
	expireEvery       = 30 * time.Second // at least; sooner when a lease runs out
)

// New makes a server and opens its sockets, so that whoever is told its
// addresses can connect at once.
func New(ctx context.Context, o Options) (*Server, error) {
	if o.MaxPolicies <= 0 {
		o.MaxPolicies = DefaultMaxPolicies
	}
	if o.CleanupEvery <= 0 {
		o.CleanupEvery = DefaultCleanupEvery
	}
	if o.SelfService && o.Directory == nil {
		return nil, errors.New("space developer self-service needs to know who the space developers are")
	}
	s := &Server{options: o, store: o.Store, log: o.Log, started: time.Now(), cleaning: make(chan struct{}, 1)}
	if o.Meter != nil {
		s.store = &timedStore{o.Store, o.Meter}
	}
	internalOptions := o.InternalOptions
	internalOptions.Log = o.Log
	if internalOptions.Hub.Exchange == nil {
		internalOptions.Hub.Exchange, _ = o.Store.(hub.Exchange) // s.store may hide it
	}
	internal, err := NewInternal(ctx, s.store, internalOptions)
	if err != nil {
		return nil, fmt.Errorf("internal API: %w", err)
	}
	s.internal = internal
	timed := s.store
	s.store = internal.store
	if o.Meter != nil {
		o.Meter.Watch(timed, internal) // that tells whether the database is there
	}
	if err := s.listen(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Server) listen(ctx context.Context) error {
	var config net.ListenConfig
	tcp := func(name, address string, server *http.Server) error {
		l, err := config.Listen(ctx, "tcp", address)
		if err != nil {
			return fmt.Errorf("%s address %s: %w", name, address, err)
		}
		s.sites = append(s.sites, site{name, l, server})
		return nil
	}
	if err := tcp("external", s.options.ExternalAddress, s.httpServer(s.external(), s.options.ExternalTLS)); err != nil {
		return err
	}
	if s.options.InternalTLS == nil {
		return errors.New("internal API: no TLS configuration")
	}
	internal := InternalServer(s.instrumentInternal(), s.options.InternalTLS, s.log)
	if err := tcp("internal", s.options.InternalAddress, internal); err != nil {
		return err
	}
	if s.options.LegacyAddress != "" {
		if s.options.LegacyTLS == nil {
			return errors.New("lease API: no TLS configuration")
		}
		silk := s.httpServer(s.instrumentSilk(NewSilk(s.store, s.log)), s.options.LegacyTLS)
		if err := tcp("legacy", s.options.LegacyAddress, silk); err != nil {
			return err
		}
	}
	if s.options.Discovery.Address != "" {
		lookup, err := s.lookup(ctx)
		if err != nil {
			return fmt.Errorf("discovery: %w", err)
		}
		if err := tcp("discovery", s.options.Discovery.Address, s.httpServer(lookup, s.options.Discovery.TLS)); err != nil {
			return err
		}
	}
	if s.options.Meter != nil && s.options.MetricsAddress != "" {
		mux := http.NewServeMux()
		mux.Handle("GET /metrics", s.options.Meter.Handler())
		if err := tcp("metrics", s.options.MetricsAddress, s.httpServer(mux, nil)); err != nil {
			return err
		}
	}
	if s.options.AdminSocket != "" {
		l, err := listenAdmin(ctx, s.options.AdminSocket)
		if err != nil {
			return fmt.Errorf("admin socket %s: %w", s.options.AdminSocket, err)
		}
		admin := s.httpServer(s.admin(), nil)
		admin.ConnContext = withCaller
		s.sites = append(s.sites, site{"admin", l, admin})
	}
	return nil
}

func (s *Server) httpServer(h http.Handler, t *tls.Config) *http.Server {
	return &http.Server{
		Handler: h, TLSConfig: t,
		ReadHeaderTimeout: readHeaderTimeout, ReadTimeout: readTimeout, IdleTimeout: idleTimeout,
		// What goes wrong on a connection is the client's affair; a handler's
		// errors are logged where they are answered.
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
}

// instrumentInternal counts and times the internal API's requests.
func (s *Server) instrumentInternal() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.instrument("internal", internalHandler(r.URL.Path), s.internal).ServeHTTP(w, r)
	})
}

// Addresses are where the server listens.
func (s *Server) Addresses() Addresses {
	var a Addresses
	for _, site := range s.sites {
		address := site.listener.Addr().String()
		switch site.name {
		case "external":
			a.External = address
		case "internal":
			a.Internal = address
		case "legacy":
			a.Legacy = address
		case "discovery":
			a.Lookup = address
		case "metrics":
			a.Metrics = address
		case "admin":
			a.Admin = s.options.AdminSocket
		}
	}
	return a
}

// Close gives the sockets back of a server that was not run.
func (s *Server) Close() error {
	var errs []error
	for _, site := range s.sites {
		if err := site.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	s.sites = nil
	return errors.Join(errs...)
}

// Run serves until ctx ends, lets requests under way finish, and returns nil; or
// returns the error of the first part that failed, having stopped the others.
func (s *Server) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	parts := []func() error{
		func() error { return s.internal.Run(ctx) },
		func() error { return s.expire(ctx) },
	}
	if s.options.Discovery.Listener != nil {
		parts = append(parts, func() error { return s.options.Discovery.Listener.Run(ctx) })
	}
	if s.options.Directory != nil {
		parts = append(parts, func() error { return s.cleanRegularly(ctx) })
	}
	for _, site := range s.sites {
		parts = append(parts, func() error { return site.serve(ctx) })
	}
	results := make(chan error, len(parts))
	for _, part := range parts {
		go func() { results <- part() }()
	}
	var errs []error
	for range parts {
		err := <-results
		if err != nil && !(ctx.Err() != nil && errors.Is(err, context.Canceled)) {
			errs = append(errs, err)
		}
		stop() // one part that ends, ends all
	}
	return errors.Join(errs...)
}

// serve serves until ctx ends, then waits for the requests under way.
func (t site) serve(ctx context.Context) error {
	unused := &silent{conns: map[net.Conn]struct{}{}}
	t.server.ConnState = unused.note
	served := make(chan error, 1)
	go func() {
		if t.server.TLSConfig != nil {
			served <- t.server.ServeTLS(t.listener, "", "")
		} else {
			served <- t.server.Serve(t.listener)
		}
	}()
	select {
	case err := <-served:
		return fmt.Errorf("serve %s: %w", t.name, err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	defer time.AfterFunc(silentGrace, unused.close).Stop()
	if err := t.server.Shutdown(grace); err != nil {
		// Whoever is still at it has had their time.
		t.server.Close()
	}
	<-served
	return nil
}

// expire ends the leases that run out, in time.
func (s *Server) expire(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	start := time.Now()
	var clock setClock
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		if by := clock.look(time.Now(), time.Since(start)); by != 0 {
			s.log.Warn("the clock of this machine was set: leases keep the time that they had left", "by", by.Round(time.Second))
		}
		wait := expireEvery
		next, err := s.store.Expire(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			s.log.Error("expire leases", "error", err)
		case !next.IsZero():
			wait = min(wait, max(time.Until(next), 10*time.Millisecond))
		}
		timer.Reset(wait)
	}
}

// Revision is the store's present revision, for the ready line.
func (s *Server) Revision(ctx context.Context) (api.Revision, error) {
	stats, err := s.store.Stats(ctx)
	return stats.Revision, err
}
