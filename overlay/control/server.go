package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tulle/overlay/mint"
)

// Limits of the server.
const (
	maxConns       = 4096
	messageTimeout = 10 * time.Second // from a message's first byte to its last
	idleTimeout    = time.Minute      // of a connection that is nobody's lifeline
	writeTimeout   = 10 * time.Second
)

// AttachRequest is an Attach that is well-formed and that its sender may ask for.
type AttachRequest struct {
	Attach
	Peer  Peer
	TUN   *os.File // the server's: valid until the call returns, duplicate to keep
	Pidfd *os.File // likewise; nil unless Lifeline is LifelinePidfd
	// Sockets are TLS's, likewise; nil unless it is to be terminated.
	Sockets *mint.Sockets
	// Gone is closed when the connection ends, but not when the server stops.
	Gone <-chan struct{}
}

// Handler does what requests ask for. Calls come from many goroutines. An
// *Error goes to the client as it is; any other error is logged, and the client
// learns only that there was one. ctx ends with the connection or the server.
type Handler interface {
	Attach(ctx context.Context, r AttachRequest) (Attached, error)
	// Detach checks for itself whether the peer may: only it knows the endpoint.
	Detach(ctx context.Context, p Peer, d Detach) error
	// GC never ends what another uid attached.
	GC(ctx context.Context, p Peer, g GC) (Collected, error)
	List(ctx context.Context) ([]Endpoint, error)
	Status(ctx context.Context) (Status, error)
	// AddPort and RemovePort check for themselves whether the peer may, as Detach does.
	AddPort(ctx context.Context, p Peer, r PortAdd) error
	RemovePort(ctx context.Context, p Peer, r PortRemove) error
	Ports(ctx context.Context) ([]ListedPort, error)
	// TrafficLog is asked to change something only by who may.
	TrafficLog(ctx context.Context, p Peer, s TrafficLogSet) (TrafficLog, error)
	// AddRules checks for itself whether the peer may, as Attach is checked.
	AddRules(ctx context.Context, p Peer, r RulesAdd) (RulesAdded, error)
	NATWho(ctx context.Context, q NATWho) ([]NATFound, error)
}

// TLSHandler does what the proxy that terminates TLS asks for; the rest is as of
// Handler. Only the daemon's own user and root may ask.
type TLSHandler interface {
	TLSList(ctx context.Context, r TLSList) (TLSContainers, error)
	// TLSSockets returns descriptors that are the server's to close.
	TLSSockets(ctx context.Context, r TLSSockets) (TLSContainer, *mint.Sockets, error)
	TLSCertificate(ctx context.Context, r TLSCertificate) (TLSPair, error)
	TLSCaller(ctx context.Context, r TLSCaller) (Caller, error)
}

// Server answers on a socket.
type Server struct {
	Handler    Handler
	TLS        TLSHandler // nil: nobody terminates TLS here
	Keys       KeyHandler // nil: there are none
	Authorizer *Authorizer
	Log        *slog.Logger
}

// Serve accepts until ctx ends, then closes the listener and every connection
// and returns when all handlers have returned. The error is nil after ctx's end.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		_ = l.Close()
	})
	defer func() {
		if !stop() {
			<-closed // the next daemon may bind the same path as soon as Serve has returned
		}
	}()
	slots := make(chan struct{}, maxConns)
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = c.Close()
			}
			return nil
		}
		if err != nil {
			if passes(err) {
				s.Log.Warn("accept", "err", err)
				if wait(ctx, 100*time.Millisecond) {
					continue
				}
				return nil
			}
			return fmt.Errorf("accept: %w", errors.Join(err, l.Close()))
		}
		uc, ok := c.(*net.UnixConn)
		if !ok {
			return errors.Join(errors.New("control socket is no unix socket"), c.Close(), l.Close())
		}
		select {
		case slots <- struct{}{}:
		default:
			s.Log.Warn("too many connections", "limit", maxConns)
			_ = c.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			s.serveConn(ctx, uc)
		})
	}
}

// passes says of an error of accept(2) that the next may do: out of descriptors, which
// every connection that ends mends, or of memory. It must not end the daemon, and with
// it every container's network.
func passes(err error) bool {
	for _, e := range []unix.Errno{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// received is one message off the wire.
type received struct {
	payload []byte
	files   []*os.File
	err     error // the last: nothing follows
}

// serveConn owns c. A second goroutine reads ahead by one message, so that the
// connection's end is noticed while a request is being handled.
func (s *Server) serveConn(ctx context.Context, c *net.UnixConn) {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer c.Close()
	server := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	peer, err := peerOf(c)
	if err != nil {
		s.Log.Warn("peer credentials", "err", err)
		return
	}

	next, gone := make(chan received), make(chan struct{})
	var life lifeline
	wg.Go(func() {
		for {
			life.arm(c)
			var m received
			m.payload, m.files, m.err = ReadMessage(c, MaxRequest, MaxDescriptors, func() { _ = c.SetReadDeadline(time.Now().Add(messageTimeout)) })
			if m.err != nil && server.Err() == nil {
				close(gone)
			}
			select {
			case next <- m:
			case <-ctx.Done():
				CloseAll(m.files)
				return
			}
			if m.err != nil {
				return
			}
		}
	})
	for {
		var m received
		select {
		case m = <-next:
		case <-ctx.Done():
			return
		}
		if m.err != nil {
			if errors.Is(m.err, errTooLarge) || errors.Is(m.err, errTooMany) {
				_ = reply(c, nil, Errorf(CodeBadRequest, "%v", m.err))
			} else if !errors.Is(m.err, io.EOF) && ctx.Err() == nil {
				s.Log.Debug("control connection", "uid", peer.UID, "err", m.err)
			}
			return
		}
		// A peer that went away in the meantime still waits for nobody: the
		// handler's context ends with the connection.
		hctx, done := context.WithCancel(ctx)
		unlink := afterClosed(hctx, gone, done)
		ok, held, err := s.handle(hctx, peer, m, gone)
		done()
		unlink()
		CloseAll(m.files)
		if held {
			life.hold(c)
		}
		if err := reply(c, ok, err); err != nil {
			s.Log.Debug("control answer", "uid", peer.UID, "err", err)
			return
		}
	}
}

// afterClosed calls f when ch closes before ctx ends; the function it returns
// waits until that is decided.
func afterClosed(ctx context.Context, ch <-chan struct{}, f func()) (wait func()) {
	end := make(chan struct{})
	go func() {
		defer close(end)
		select {
		case <-ch:
			f()
		case <-ctx.Done():
		}
	}()
	return func() { <-end }
}

// lifeline says whether a connection may be silent for ever. Its mutex orders
// the reader's deadline with the handler's word.
type lifeline struct {
	mu   sync.Mutex
	held bool // guarded by mu
}

func (l *lifeline) arm(c *net.UnixConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held {
		_ = c.SetReadDeadline(time.Time{})
	} else {
		_ = c.SetReadDeadline(time.Now().Add(idleTimeout))
	}
}

func (l *lifeline) hold(c *net.UnixConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held = true
	_ = c.SetReadDeadline(time.Time{})
}

// handle does one request. held: the connection is now an endpoint's lifeline.
func (s *Server) handle(ctx context.Context, peer Peer, m received, gone <-chan struct{}) (ok any, held bool, err error) {
	req, err := decodeRequest(m.payload, len(m.files))
	if err != nil {
		return nil, false, err
	}
	if err := s.Authorizer.Known(peer); err != nil {
		return nil, false, err
	}
	switch r := req.(type) {
	case Attach:
		if err := s.Authorizer.Attach(peer, r.App); err != nil {
			return nil, false, err
		}
		ar := AttachRequest{Attach: r, Peer: peer, TUN: m.files[0], Gone: gone}
		if r.Lifeline == LifelinePidfd {
			ar.Pidfd = m.files[1]
		}
		if n := r.TLS.sockets(); n > 0 {
			ar.Sockets = mint.FromFiles(m.files[len(m.files)-n:])
		}
		ok, err = s.Handler.Attach(ctx, ar)
		held = err == nil && r.Lifeline == LifelineConnection
	case Detach:
		ok, err = struct{}{}, s.Handler.Detach(ctx, peer, r)
	case GC:
		ok, err = s.Handler.GC(ctx, peer, r)
	case PortAdd:
		ok, err = struct{}{}, s.Handler.AddPort(ctx, peer, r)
	case PortRemove:
		ok, err = struct{}{}, s.Handler.RemovePort(ctx, peer, r)
	case RulesAdd:
		ok, err = s.Handler.AddRules(ctx, peer, r)
	case TrafficLogSet:
		if !r.asks() {
			if err := s.Authorizer.Operate(peer); err != nil {
				return nil, false, err
			}
		}
		ok, err = s.Handler.TrafficLog(ctx, peer, r)
	case portListRequest:
		ok, err = s.Handler.Ports(ctx)
	case NATWho:
		ok, err = s.Handler.NATWho(ctx, r)
	case RotateKey:
		ok, err = s.rotateKey(ctx, peer, r)
	case listRequest:
		ok, err = s.Handler.List(ctx)
	case statusRequest:
		ok, err = s.Handler.Status(ctx)
	default:
		ok, err = s.handleTLS(ctx, peer, r)
	}
	var e *Error
	if err != nil && !errors.As(err, &e) {
		s.Log.Error("control request", "uid", peer.UID, "err", err)
		err = Errorf(CodeInternal, "the daemon could not do this; its log says why")
	}
	return ok, held, err
}

func (s *Server) handleTLS(ctx context.Context, peer Peer, r any) (any, error) {
	if err := s.Authorizer.Terminate(peer); err != nil {
		return nil, err
	}
	if s.TLS == nil {
		return nil, Errorf(CodeUnavailable, "this daemon has no TLS to be terminated")
	}
	switch r := r.(type) {
	case TLSList:
		return s.TLS.TLSList(ctx, r)
	case TLSSockets:
		c, sockets, err := s.TLS.TLSSockets(ctx, r)
		return withFiles{c, sockets}, err
	case TLSCertificate:
		return s.TLS.TLSCertificate(ctx, r)
	case TLSCaller:
		return s.TLS.TLSCaller(ctx, r)
	}
	return nil, Errorf(CodeBadRequest, "unknown operation")
}

// withFiles is an answer with descriptors beside it, which reply closes.
type withFiles struct {
	body  any
	files *mint.Sockets
}

func reply(c *net.UnixConn, ok any, err error) error {
	var a answer
	var files []*os.File
	if w, is := ok.(withFiles); is {
		defer w.files.Close()
		if ok = w.body; err == nil {
			files = w.files.Files()
		}
	}
	if err != nil {
		errors.As(err, &a.Error)
	} else if a.OK, err = json.Marshal(ok); err != nil {
		a.Error = Errorf(CodeInternal, "the answer cannot be written: %v", err)
	}
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	_ = c.SetWriteDeadline(time.Now().Add(writeTimeout))
	return WriteMessage(c, b, files...)
}

func peerOf(c *net.UnixConn) (Peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return Peer{}, err
	}
	if cerr != nil {
		return Peer{}, cerr
	}
	return Peer{UID: cred.Uid, GID: cred.Gid, PID: cred.Pid}, nil
}
