// Package whois answers an app that asks who is at the other end of one of its
// connections: HTTP at the resolver's address, inside the daemon.
//
// Which container asks is known by the device that the connection came by, so there
// is nothing to log in with, and nothing to ask about others: Lookup sees the
// asker's own connections alone.
//
// A container has a bounded number of connections, a question a bounded length and
// time. Serve is called in a goroutine for each connection.
package whois

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"
)

// Port and Path of the question.
const (
	Port = 80
	Path = "/v1/whois"
)

// Bounds.
const (
	ofOne    = 16   // connections of one container
	together = 256  // of all
	maxHead  = 8192 // bytes of a question
	within   = 5 * time.Second
	idle     = 30 * time.Second
)

// Question is what a container asks.
type Question struct {
	Asker netip.Addr     // by its device; its IPv4 address in any case
	Peer  netip.AddrPort // the other end
	Port  uint16         // the asker's own, 0: any
}

// Answer is who is there. What is not known is left out.
type Answer struct {
	Peer      netip.AddrPort `json:"peer"`
	AppGUID   string         `json:"app_guid"`
	AppName   string         `json:"app_name,omitempty"`
	SpaceGUID string         `json:"space_guid,omitempty"`
	SpaceName string         `json:"space_name,omitempty"`
	OrgGUID   string         `json:"org_guid,omitempty"`
	OrgName   string         `json:"org_name,omitempty"`
}

// ErrBusy: the container asks about too much that is not there.
var ErrBusy = errors.New("too many questions about connections that are not there; name your own port, &port=N")

// Lookup answers a question; an error that is not ErrBusy is that nobody is there.
type Lookup func(ctx context.Context, q Question) (Answer, error)

// Server is made by New.
type Server struct {
	lookup Lookup
	http   *http.Server
	conns  handed

	mu  sync.Mutex         // guards what follows
	all int                // connections
	of  map[netip.Addr]int // by asker
}

// New starts a server that has no listener of its own.
func New(lookup Lookup, log *slog.Logger) *Server {
	s := &Server{lookup: lookup, of: map[netip.Addr]int{}, conns: handed{c: make(chan net.Conn), over: make(chan struct{})}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+Path, s.answer)
	mux.HandleFunc(Path, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Allow", "GET, HEAD")
		refuse(w, http.StatusMethodNotAllowed, "ask with GET")
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, http.StatusNotFound, "what there is here is "+Path+"?peer=IP:PORT")
	})
	s.http = &http.Server{Handler: mux, ReadTimeout: within, WriteTimeout: within, IdleTimeout: idle, MaxHeaderBytes: maxHead - 4096, // net/http adds as much
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, asker{}, c.(*conn).from)
		}}
	go s.http.Serve(&s.conns)
	return s
}

// Close ends the server and every connection.
func (s *Server) Close() error { return s.http.Close() }

// Serve answers what the container at from asks on a connection, until it ends. The
// connection is the server's, which closes it.
func (s *Server) Serve(from netip.Addr, c net.Conn) {
	if !s.enter(from) {
		c.Close()
		return
	}
	defer s.leave(from)
	own := &conn{Conn: c, from: from, closed: make(chan struct{})}
	select {
	case s.conns.c <- own:
		<-own.closed
	case <-s.conns.over:
		c.Close()
	}
}

func (s *Server) enter(from netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all >= together || s.of[from] >= ofOne {
		return false
	}
	s.all++
	s.of[from]++
	return true
}

func (s *Server) leave(from netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all--
	if s.of[from]--; s.of[from] == 0 {
		delete(s.of, from)
	}
}

type asker struct{}

func (s *Server) answer(w http.ResponseWriter, r *http.Request) {
	q := Question{Asker: r.Context().Value(asker{}).(netip.Addr)}
	form := r.URL.Query()
	peer, err := netip.ParseAddrPort(form.Get("peer"))
	if err != nil || peer.Port() == 0 {
		refuse(w, http.StatusBadRequest, "peer is the other end of a connection of yours, IP:PORT, an IPv6 address in brackets")
		return
	}
	q.Peer = netip.AddrPortFrom(peer.Addr().Unmap(), peer.Port())
	if own := form.Get("port"); own != "" {
		n, err := strconv.ParseUint(own, 10, 16)
		if err != nil || n == 0 {
			refuse(w, http.StatusBadRequest, "port is your own end's, 1 to 65535")
			return
		}
		q.Port = uint16(n)
	}
	got, err := s.lookup(r.Context(), q)
	switch {
	case errors.Is(err, ErrBusy):
		w.Header().Set("Retry-After", "1")
		refuse(w, http.StatusTooManyRequests, err.Error())
	case err != nil:
		refuse(w, http.StatusNotFound, fmt.Sprintf("%s is at the other end of no live connection of this container's: %v", q.Peer, err))
	default:
		got.Peer = q.Peer
		reply(w, http.StatusOK, got)
	}
}

func refuse(w http.ResponseWriter, code int, text string) {
	reply(w, code, struct {
		Error string `json:"error"`
	}{text})
}

func reply(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // the client is gone otherwise
}

// conn tells when it is closed.
type conn struct {
	net.Conn
	from   netip.Addr
	once   sync.Once
	closed chan struct{}
}

func (c *conn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { close(c.closed) })
	return err
}

// handed is the listener of connections that somebody else accepted.
type handed struct {
	c    chan net.Conn
	once sync.Once
	over chan struct{}
}

func (h *handed) Accept() (net.Conn, error) {
	select {
	case c := <-h.c:
		return c, nil
	case <-h.over:
		return nil, net.ErrClosed
	}
}

func (h *handed) Close() error {
	h.once.Do(func() { close(h.over) })
	return nil
}

func (h *handed) Addr() net.Addr { return &net.TCPAddr{Port: Port} }
