package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"syscall"

	"github.com/gorilla/mux"
	"golang.org/x/sys/unix"

	"tulle/policy/api"
	"tulle/policy/store"
)

// The admin socket is how commands reach a live server, which alone may write
// its database. It is a unix socket of mode 0600 beside the database: who may
// open it may as well open the file. Behind it is HTTP with the paths below.
const (
	pathAdminPeers = "/v1/peers"        // POST api.Peer -> 204
	pathAdminPeer  = "/v1/peers/{name}" // DELETE -> 204
	pathAdminStore = "/v1/store"        // GET -> store.Backup; PUT store.Backup -> 204
	maxAdminBody   = 64 << 10
)

// AdminSocket is the path of the admin socket of a server on the database at
// path.
func AdminSocket(database string) string { return database + ".sock" }

// ErrNoServer means that no server listens at the admin socket.
var ErrNoServer = errors.New("no server is running")

func (s *Server) admin() http.Handler {
	router := mux.NewRouter().SkipClean(true).UseEncodedPath()
	handle := func(method, path, name string, h handler) {
		router.Methods(method).Path(path).Handler(s.instrument("admin", name,
			http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				r = r.WithContext(store.WithActor(r.Context(), adminActor(r.Context())))
				if err := h(w, r); err != nil {
					writeError(w, r, s.log, err)
				}
			})))
	}
	handle(http.MethodPost, pathAdminPeers, "add_peer", s.addPeer)
	handle(http.MethodDelete, pathAdminPeer, "remove_peer", s.removePeer)
	handle(http.MethodPost, pathAdminJoinTokens, "add_join_token", s.addJoinToken)
	handle(http.MethodPut, pathAdminRevoke, "revoke_cell", s.revokeCell)
	handle(http.MethodGet, pathAdminRevocations, "revocations", s.revocations)
	handle(http.MethodGet, pathAdminStore, "export", s.exportStore)
	handle(http.MethodPut, pathAdminStore, "import", s.importStore)
	return router
}

// adminBody reads what a command sent; an error names it.
func adminBody(w http.ResponseWriter, r *http.Request, what string, into any) error {
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxAdminBody))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return refuse(http.StatusBadRequest, what+": "+err.Error(), nil)
	}
	return nil
}

func (s *Server) addPeer(w http.ResponseWriter, r *http.Request) error {
	var p api.Peer
	if err := adminBody(w, r, "peer", &p); err != nil {
		return err
	}
	if err := s.store.AddPeer(r.Context(), p); err != nil {
		return err
	}
	s.log.Info("peer added", "peer", p.Name, "underlay", p.Underlay, "subnet", p.Subnet)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) removePeer(w http.ResponseWriter, r *http.Request) error {
	name, err := url.PathUnescape(mux.Vars(r)["name"])
	if err != nil {
		return refuse(http.StatusBadRequest, "name: "+err.Error(), nil)
	}
	if err := s.store.RemovePeer(r.Context(), name); err != nil {
		return err
	}
	s.log.Info("peer removed", "peer", name)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

type callerKey struct{}

// withCaller puts the uid of the process at the other end of the admin socket
// into the context of its connection.
func withCaller(ctx context.Context, c net.Conn) context.Context {
	socket, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	if e := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); e != nil || err != nil {
		return ctx
	}
	return context.WithValue(ctx, callerKey{}, cred.Uid)
}

// adminActor is the caller of the admin socket, for the audit record.
func adminActor(ctx context.Context) store.Actor {
	a := store.Actor{Who: "uid unknown", From: "admin socket"}
	if uid, ok := ctx.Value(callerKey{}).(uint32); ok {
		a.Who = fmt.Sprintf("uid %d", uid)
	}
	return a
}

// AdminClient calls a live server through its admin socket.
type AdminClient struct{ http http.Client }

// NewAdminClient makes a client for the socket at path.
func NewAdminClient(path string) *AdminClient {
	return &AdminClient{http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			short, done, err := shortPath(path)
			if err != nil {
				return nil, err
			}
			defer done()
			var d net.Dialer
			return d.DialContext(ctx, "unix", short)
		},
	}}}
}

// AddPeer enters a silk peer. ErrNoServer when nobody listens.
func (c *AdminClient) AddPeer(ctx context.Context, p api.Peer) error {
	body, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return c.call(ctx, http.MethodPost, pathAdminPeers, bytes.NewReader(body), nil)
}

// RemovePeer removes a silk peer. ErrNoServer when nobody listens.
func (c *AdminClient) RemovePeer(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, pathAdminPeers+"/"+url.PathEscape(name), nil, nil)
}

// call sends a request and hands the body of a 200 to into.
func (c *AdminClient) call(ctx context.Context, method, path string, body io.Reader, into func(io.Reader) error) error {
	r, err := http.NewRequestWithContext(ctx, method, "http://admin"+path, body)
	if err != nil {
		return err
	}
	answer, err := c.http.Do(r)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return ErrNoServer
	}
	if err != nil {
		return fmt.Errorf("admin socket: %w", err)
	}
	defer answer.Body.Close()
	switch {
	case answer.StatusCode == http.StatusNoContent:
		return nil
	case answer.StatusCode == http.StatusOK && into != nil:
		return into(answer.Body)
	}
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxAdminBody))
	if err != nil {
		return fmt.Errorf("admin socket: %w", err)
	}
	if why, ok := api.ParseError(text); ok {
		return errors.New(why)
	}
	return fmt.Errorf("admin socket: %s", answer.Status)
}

// listenAdmin opens the socket. One that a killed server left is replaced: who
// holds the database's lock is the only server there is. The mode is set before
// the socket has its name, so that there is no moment at which others could
// connect.
func listenAdmin(ctx context.Context, path string) (net.Listener, error) {
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	short, done, err := shortPath(fresh)
	if err != nil {
		return nil, err
	}
	defer done()
	var config net.ListenConfig
	l, err := config.Listen(ctx, "unix", short)
	if err != nil {
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // it would remove the wrong name
	if err = os.Chmod(fresh, 0o600); err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		l.Close()
		return nil, errors.Join(err, os.Remove(fresh))
	}
	return &adminListener{l, path}, nil
}

// adminListener removes its socket file when it is closed.
type adminListener struct {
	net.Listener
	path string
}

func (l *adminListener) Close() error {
	err := l.Listener.Close()
	if err != nil {
		return err // a second Close; the name may be another server's by now
	}
	return os.Remove(l.path)
}

// maxSocketPath is what fits into sockaddr_un.
const maxSocketPath = 107

// shortPath is a name for path that fits into a socket address; done ends it.
func shortPath(path string) (short string, done func(), err error) {
	if len(path) <= maxSocketPath {
		return path, func() {}, nil
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)), func() { dir.Close() }, nil
}
