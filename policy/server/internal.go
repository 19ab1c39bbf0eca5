package server

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/gorilla/mux"

	"tulle/policy/api"
	"tulle/policy/ca"
	"tulle/policy/hub"
	"tulle/policy/route"
	"tulle/policy/store"
)

// Largest request bodies of the internal API, in bytes. A list of endpoints is
// that of one lease.
const (
	maxLeaseBody     = 64 << 10
	maxAckBody       = 4 << 10
	maxEndpointsBody = 16 << 20
	maxSecretsBody   = 1 << 20
)

// Internal is the internal API: what cells ask, tell and are told. It serves
// only requests that came over mutual TLS with a cell's certificate (InternalServer
// makes such a server). Safe for concurrent use.
type Internal struct {
	store        *steadyStore
	hub          *hub.Hub
	legacy       *ca.Authority // nil: no legacy client is let in
	issuer       *ca.Authority // the cells' root; nil: no credential is issued
	router       *mux.Router
	writeTimeout time.Duration
	log          *slog.Logger

	instances        *ca.Authority // nil: no certificates of containers
	trustDomain      string
	instanceLifetime time.Duration
}

var _ InternalAPI = (*Internal)(nil)

// InternalOptions of NewInternal. Zero values are the defaults.
type InternalOptions struct {
	Hub    hub.Options
	Legacy *ca.Authority // whose clients read policies and security groups; nil: none
	// Issuer is the cells' root, by which cells join and renew their credentials;
	// nil: they cannot.
	Issuer       *ca.Authority
	Instances    *ca.Authority // signs the certificates of containers; nil: none
	TrustDomain  string        // of their SPIFFE IDs; ca.DefaultTrustDomain
	Lifetime     time.Duration // of these certificates; ca.InstanceLifetime
	WriteTimeout time.Duration // a watching cell that takes no byte for so long is dropped; 30 s
	// Refresh is how often, at most, the server reads again what it answers from
	// while the database is away, and what no watch needs; 5 s.
	Refresh time.Duration
	Log     *slog.Logger
}

// NewInternal reads the store's state and makes the internal API. Watches are
// served while Run runs.
func NewInternal(ctx context.Context, s store.Store, opt InternalOptions) (*Internal, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Hub.Log == nil {
		opt.Hub.Log = opt.Log
	}
	if opt.WriteTimeout <= 0 {
		opt.WriteTimeout = 30 * time.Second
	}
	if opt.Refresh <= 0 {
		opt.Refresh = 5 * time.Second
	}
	if opt.TrustDomain == "" {
		opt.TrustDomain = ca.DefaultTrustDomain
	}
	if opt.Hub.Exchange == nil {
		// A store of several servers lets their hubs talk.
		opt.Hub.Exchange, _ = s.(hub.Exchange)
	}
	if opt.Hub.Groups == nil {
		opt.Hub.Groups = s
	}
	h, err := hub.New(ctx, s, opt.Hub)
	if err != nil {
		return nil, err
	}
	s.RestTags(h.Acknowledged)
	in := &Internal{store: newSteady(s, h, opt.Refresh, opt.Log), hub: h, legacy: opt.Legacy, issuer: opt.Issuer, writeTimeout: opt.WriteTimeout, log: opt.Log,
		instances: opt.Instances, trustDomain: opt.TrustDomain, instanceLifetime: opt.Lifetime}
	in.route([]internalRoute{
		{http.MethodPut, api.PathLease, in.ofCell(in.putLease)},
		{http.MethodDelete, api.PathLease, in.ofCell(in.deleteLease)},
		{http.MethodPut, api.PathEndpoints, in.ofCell(in.putEndpoints)},
		{http.MethodPut, api.PathSecrets, in.ofCell(in.putSecrets)},
		{http.MethodPost, api.PathAck, in.ofCell(in.postAck)},
		{http.MethodPost, api.PathCredential, in.ofCell(in.postCredential)},
		{http.MethodPost, api.PathJoin, in.postJoin},
		{http.MethodPost, api.PathCertificates, in.ofCell(in.postCertificate)},
		{http.MethodGet, api.PathTrust, in.ofCell(in.getTrust)},
		{http.MethodGet, api.PathAppName, in.ofCell(in.getAppName)},
		{http.MethodGet, api.PathWatch, in.ofCell(in.getWatch)},
		{http.MethodGet, pathInternalPolicies, in.ofReader(in.getPolicies)},
		{http.MethodGet, pathInternalLastUpdated, in.ofReader(in.getLastUpdated)},
		{http.MethodGet, api.PathInternalGroups, in.ofReader(in.getSecurityGroups)},
		{http.MethodGet, api.PathInternalGroupsUpdated, in.ofReader(in.getGroupsUpdated)},
		{http.MethodPut, api.PathInternalTags, in.ofReader(in.putTag)},
	})
	return in, nil
}

// internalRoute is one method of one path.
type internalRoute struct {
	method, path string
	handle       http.HandlerFunc
}

// route makes the router. As at the external API paths match exactly as they
// come, and a known path names its methods to who tries another.
func (in *Internal) route(routes []internalRoute) {
	in.router = mux.NewRouter().SkipClean(true)
	methods := map[string][]string{}
	for _, r := range routes {
		in.router.HandleFunc(pattern(r.path), r.handle).Methods(r.method)
		methods[r.path] = append(methods[r.path], r.method)
	}
	for _, r := range routes {
		in.router.Path(pattern(r.path)).Handler(notAllowed(methods[r.path]))
	}
}

// InternalServer makes the HTTP/2 server of the internal API. The caller gives
// it a listener (ServeTLS with empty file names) and shuts it down.
func InternalServer(in http.Handler, conf *tls.Config, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           in,
		TLSConfig:         conf,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       5 * time.Minute,
		MaxHeaderBytes:    4 << 20, // agents put all their apps into one query
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		HTTP2:             &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second},
	}
}

// Run follows the store until ctx ends, then ends every watch.
func (in *Internal) Run(ctx context.Context) error {
	steady := make(chan struct{})
	go func() {
		defer close(steady)
		in.store.run(ctx)
	}()
	err := in.hub.Run(ctx)
	<-steady
	return err
}

// Hub is the watch hub, for its counters.
func (in *Internal) Hub() *hub.Hub { return in.hub }

// Directory is the hub, which knows what names stand for.
func (in *Internal) Directory() route.Directory { return in.hub }

// Cell is what is known of one cell.
func (in *Internal) Cell(name string) CellStatus {
	s := in.hub.Status(name)
	return CellStatus{Live: s.Live, Watching: s.Watching, Acknowledged: s.Acked, LastSeen: s.Seen}
}

// Watchers is the number of open watch streams.
func (in *Internal) Watchers() int { return in.hub.Watchers() }

// Lag is how many revisions the slowest watching cell is behind.
func (in *Internal) Lag() api.Revision { return in.hub.Lag() }

// Enforced waits for the cells that the question is about.
func (in *Internal) Enforced(ctx context.Context, q hub.Question, wait time.Duration) (hub.Receipt, error) {
	return in.hub.Enforced(ctx, q, wait)
}

func (in *Internal) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Strict-Transport-Security", "max-age=31536000")
	in.router.ServeHTTP(w, r)
}

// cellHandler serves a request of a cell whose certificate was checked. An error
// that it returns is answered by refuse.
type cellHandler func(w http.ResponseWriter, r *http.Request, cell ca.Peer) error

// ofCell finds out which cell asks. A name in the path must be the one in the
// certificate.
func (in *Internal) ofCell(handle cellHandler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		cell, err := in.client(r)
		switch name, named := mux.Vars(r)["name"]; {
		case err != nil:
		case cell.Role != ca.RoleCell:
			err = forbidden("a certificate of the legacy root may only read policies and security groups, and ask for tags")
		case named && name != cell.Name:
			err = forbidden("the certificate is of cell " + cell.Name + ", not of " + name)
		default:
			ctx := store.WithActor(r.Context(), store.Actor{Who: "cell " + cell.Name, From: from(r), Cell: cell.Name, Issued: cell.Issued})
			err = handle(w, r.WithContext(ctx), cell)
		}
		if err != nil {
			in.refuse(w, r, cell, err)
		}
	}
}

// ofReader serves cells and clients of the legacy root alike: what any agent of
// the original asks, answered as text, as the original does.
func (in *Internal) ofReader(handle cellHandler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		nameRequest(w.Header(), r)
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		client, err := in.client(r)
		if err == nil {
			who := store.Actor{Who: "cell " + client.Name, From: from(r), Cell: client.Name, Issued: client.Issued}
			if client.Role != ca.RoleCell {
				who = store.Actor{Who: string(client.Role) + " " + client.Name, From: from(r)}
			}
			err = handle(w, r.WithContext(store.WithActor(r.Context(), who)), client)
		}
		if err != nil {
			in.refuse(w, r, client, err)
		}
	}
}

// client is who asks. The certificate must still be valid, and not revoked: a
// connection may outlive it.
func (in *Internal) client(r *http.Request) (ca.Peer, error) {
	if in.legacy.Issued(r.TLS) {
		p := ca.Peer{Role: ca.RoleLegacy, Name: r.TLS.PeerCertificates[0].Subject.CommonName}
		return p, unexpired(r, p)
	}
	p, err := ca.PeerOf(r.TLS, ca.RoleCell)
	if err != nil {
		return p, forbidden(err.Error())
	}
	if err := in.admit(p); err != nil {
		return p, err
	}
	return p, unexpired(r, p)
}

// admit refuses a cell whose credential has been revoked.
func (in *Internal) admit(cell ca.Peer) error {
	if err := in.hub.Admit(cell.Name, cell.Issued); err != nil {
		return forbidden("cell " + cell.Name + ": " + err.Error())
	}
	return nil
}

func unexpired(r *http.Request, p ca.Peer) error {
	if !time.Now().After(r.TLS.PeerCertificates[0].NotAfter) {
		return nil
	}
	kind := "cell "
	if p.Role != ca.RoleCell {
		kind = string(p.Role) + " client "
	}
	return forbidden("the certificate of " + kind + p.Name + " has expired")
}

// httpStatus is an answer that is not 2xx, with its text for the client and
// what is told to the log alone.
type httpStatus struct {
	code  int
	text  string
	cause error
}

func (e *httpStatus) Error() string {
	if e.cause != nil {
		return e.text + ": " + e.cause.Error()
	}
	return e.text
}

func forbidden(text string) error { return &httpStatus{code: http.StatusForbidden, text: text} }

func badRequest(text string) error { return &httpStatus{code: http.StatusBadRequest, text: text} }

// refuse maps an error to its answer. Only texts meant for the cell leave the
// server; the rest is logged.
func (in *Internal) refuse(w http.ResponseWriter, r *http.Request, cell ca.Peer, err error) {
	answer := &httpStatus{code: http.StatusInternalServerError, text: "internal error"}
	if known := new(httpStatus); errors.As(err, &known) {
		answer = known
		if unavailable(known.cause) {
			answer = &httpStatus{code: http.StatusServiceUnavailable, text: known.text}
		}
	} else {
		for target, code := range map[error]int{
			store.ErrConflict: http.StatusConflict,
			store.ErrNotFound: http.StatusNotFound,
			store.ErrNoLease:  http.StatusServiceUnavailable,
			store.ErrAway:     http.StatusServiceUnavailable,
			store.ErrFull:     http.StatusServiceUnavailable,
			store.ErrCorrupt:  http.StatusServiceUnavailable,
			store.ErrRevoked:  http.StatusForbidden,
			hub.ErrEpoch:      http.StatusConflict,
			hub.ErrFuture:     http.StatusConflict,
		} {
			switch {
			case !errors.Is(err, target):
			case unavailable(target): // the rest of the text is the database's own
				answer = &httpStatus{code: code, text: target.Error()}
			default:
				answer = &httpStatus{code: code, text: err.Error()}
			}
		}
	}
	if answer.code >= 500 && r.Context().Err() == nil {
		log := in.log
		if id := w.Header().Get(headerRequestID); id != "" { // a cell's own requests have none
			log = log.With("request_id", id)
		}
		log.Error("internal API request failed", "method", r.Method, "path", r.URL.Path, "cell", cell.Name, "error", err)
	}
	if w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", "application/json")
	}
	w.WriteHeader(answer.code)
	w.Write(api.ErrorBody(answer.text))
}
