package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"tulle/overlay/mint"
)

// Client asks one daemon over one connection. Its methods are for one goroutine
// at a time; Close and Done for any.
type Client struct {
	c       *net.UnixConn
	answers chan received
	done    chan struct{}
	err     error // why done is closed; written before
}

// Dial connects to the daemon's socket.
func Dial(path string) (*Client, error) {
	c, err := net.Dial("unix", path)
	if err != nil {
		return nil, explainDial(path, err)
	}
	cl := &Client{c: c.(*net.UnixConn), answers: make(chan received, 1), done: make(chan struct{})}
	go cl.read()
	return cl, nil
}

// explainDial says what keeps us from the daemon.
func explainDial(path string, err error) error {
	err = fmt.Errorf("connect to the cell daemon: %w", err)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("no cell daemon listens on %s: start tulle-celld, or name its socket: %w", path, err)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("uid %d may not open %s: run as the daemon's user, or have its operator open the socket to you: %w", os.Geteuid(), path, err)
	}
	return err
}

// read watches for the connection's end also while nobody asks anything.
func (c *Client) read() {
	defer close(c.done)
	for {
		b, files, err := ReadMessage(c.c, MaxAnswer, MaxDescriptors, nil)
		if err != nil {
			c.err = err
			return
		}
		select {
		case c.answers <- received{payload: b, files: files}:
		default:
			CloseAll(files)
			c.err = errors.New("the daemon sent an answer that nobody asked for")
			_ = c.c.Close()
			return
		}
	}
}

// Done is closed when the connection has ended: the daemon stopped or died. The
// holder of a lifeline then dials again and attaches with Resume.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close ends the connection, and with it an endpoint whose lifeline it is.
func (c *Client) Close() error {
	err := c.c.Close()
	<-c.done
	return err
}

// Attach hands tun to the daemon. pidfd is nil unless a.Lifeline is
// LifelinePidfd, sockets are those of a.TLS. All stay the caller's. With
// LifelineConnection the endpoint lives as long as this connection.
func (c *Client) Attach(ctx context.Context, a Attach, tun, pidfd *os.File, sockets ...*os.File) (Attached, error) {
	files := []*os.File{tun}
	if pidfd != nil {
		files = append(files, pidfd)
	}
	files = append(files, sockets...)
	var got Attached
	err := c.do(ctx, opAttach, a, &got, files...)
	return got, err
}

// Detach ends an endpoint; one that is not there is no error.
func (c *Client) Detach(ctx context.Context, d Detach) error {
	return c.do(ctx, opDetach, d, nil)
}

// GC ends the caller's own endpoints of a network that it does not name.
func (c *Client) GC(ctx context.Context, g GC) (Collected, error) {
	var got Collected
	err := c.do(ctx, opGC, g, &got)
	return got, err
}

// List is the cell's endpoints, by container.
func (c *Client) List(ctx context.Context) ([]Endpoint, error) {
	var got []Endpoint
	err := c.do(ctx, opList, nil, &got)
	return got, err
}

// Status is the daemon's state.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var got Status
	err := c.do(ctx, opStatus, nil, &got)
	return got, err
}

// TLSList, TLSSockets, TLSCertificate and TLSCaller are the proxy's, see there.
func (c *Client) TLSList(ctx context.Context, q TLSList) (TLSContainers, error) {
	var got TLSContainers
	err := c.do(ctx, opTLSList, q, &got)
	return got, err
}

// TLSSockets returns sockets that are the caller's.
func (c *Client) TLSSockets(ctx context.Context, q TLSSockets) (TLSContainer, *mint.Sockets, error) {
	var got TLSContainer
	files, err := c.ask(ctx, opTLSSockets, q, &got)
	if err == nil && len(files) != (&TLS{}).sockets() {
		CloseAll(files)
		err = fmt.Errorf("%s: the cell daemon sent %d descriptors", opTLSSockets, len(files))
	}
	if err != nil {
		return got, nil, err
	}
	return got, mint.FromFiles(files), nil
}

// TLSCertificate asks for a container's certificate.
func (c *Client) TLSCertificate(ctx context.Context, q TLSCertificate) (TLSPair, error) {
	var got TLSPair
	err := c.do(ctx, opTLSCertificate, q, &got)
	return got, err
}

// TLSCaller asks who is at a connection's other end.
func (c *Client) TLSCaller(ctx context.Context, q TLSCaller) (Caller, error) {
	var got Caller
	err := c.do(ctx, opTLSCaller, q, &got)
	return got, err
}

// do is ask where no descriptor is to come.
func (c *Client) do(ctx context.Context, op string, body, into any, files ...*os.File) error {
	got, err := c.ask(ctx, op, body, into, files...)
	CloseAll(got)
	return err
}

// ask sends one request and waits for its answer. A refusal is an *Error. When
// ctx ends first, the connection is closed: the daemon undoes what it was at,
// and no late answer can be taken for the next one's.
func (c *Client) ask(ctx context.Context, op string, body, into any, files ...*os.File) ([]*os.File, error) {
	r := request{Op: op}
	var err error
	if body != nil {
		if r.Body, err = json.Marshal(body); err != nil {
			return nil, fmt.Errorf("%s: %w", op, err)
		}
	}
	b, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	if len(b) > MaxRequest {
		return nil, Errorf(CodeBadRequest, "%s: the request has %d bytes, at most %d are possible", op, len(b), MaxRequest)
	}
	deadline, _ := ctx.Deadline()
	_ = c.c.SetWriteDeadline(deadline)
	defer func() { _ = c.c.SetWriteDeadline(time.Time{}) }()
	if err := WriteMessage(c.c, b, files...); err != nil {
		// The daemon may have said why before it hung up.
		select {
		case m := <-c.answers:
			return m.decode(op, into)
		case <-c.done:
		case <-ctx.Done():
		}
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	select {
	case m := <-c.answers:
		return m.decode(op, into)
	case <-ctx.Done():
		_ = c.Close()
		return nil, fmt.Errorf("%s: %w", op, ctx.Err())
	case <-c.done:
	}
	select {
	case m := <-c.answers:
		return m.decode(op, into)
	default:
	}
	if errors.Is(c.err, io.EOF) {
		return nil, fmt.Errorf("%s: the cell daemon closed the connection", op)
	}
	return nil, fmt.Errorf("%s: %w", op, c.err)
}

// decode reads an answer; its descriptors are the caller's, or closed.
func (m received) decode(op string, into any) ([]*os.File, error) {
	if err := decodeAnswer(op, m.payload, into); err != nil {
		CloseAll(m.files)
		return nil, err
	}
	return m.files, nil
}

func decodeAnswer(op string, b []byte, into any) error {
	var a answer
	if err := json.Unmarshal(b, &a); err != nil {
		return fmt.Errorf("%s: answer of the cell daemon: %w", op, err)
	}
	if a.Error != nil {
		return a.Error
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(a.OK, into); err != nil {
		return fmt.Errorf("%s: answer of the cell daemon: %w", op, err)
	}
	return nil
}
