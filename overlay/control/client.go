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
)

// Client asks one daemon over one connection. Its methods are for one goroutine
// at a time; Close and Done for any.
type Client struct {
	c       *net.UnixConn
	answers chan []byte
	done    chan struct{}
	err     error // why done is closed; written before
}

// Dial connects to the daemon's socket.
func Dial(path string) (*Client, error) {
	c, err := net.Dial("unix", path)
	if err != nil {
		return nil, fmt.Errorf("connect to the cell daemon: %w", err)
	}
	cl := &Client{c: c.(*net.UnixConn), answers: make(chan []byte, 1), done: make(chan struct{})}
	go cl.read()
	return cl, nil
}

// read watches for the connection's end also while nobody asks anything.
func (c *Client) read() {
	defer close(c.done)
	for {
		b, _, err := ReadMessage(c.c, MaxAnswer, 0, nil)
		if err != nil {
			c.err = err
			return
		}
		select {
		case c.answers <- b:
		default:
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
// LifelinePidfd. Both stay the caller's. With LifelineConnection the endpoint
// lives as long as this connection.
func (c *Client) Attach(ctx context.Context, a Attach, tun, pidfd *os.File) (Attached, error) {
	files := []*os.File{tun}
	if pidfd != nil {
		files = append(files, pidfd)
	}
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

// do sends one request and waits for its answer. A refusal is an *Error. When
// ctx ends first, the connection is closed: the daemon undoes what it was at,
// and no late answer can be taken for the next one's.
func (c *Client) do(ctx context.Context, op string, body, into any, files ...*os.File) error {
	r := request{Op: op}
	var err error
	if body != nil {
		if r.Body, err = json.Marshal(body); err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
	}
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if len(b) > MaxRequest {
		return Errorf(CodeBadRequest, "%s: the request has %d bytes, at most %d are possible", op, len(b), MaxRequest)
	}
	deadline, _ := ctx.Deadline()
	_ = c.c.SetWriteDeadline(deadline)
	defer func() { _ = c.c.SetWriteDeadline(time.Time{}) }()
	if err := WriteMessage(c.c, b, files...); err != nil {
		// The daemon may have said why before it hung up.
		select {
		case b := <-c.answers:
			return decodeAnswer(op, b, into)
		case <-c.done:
		case <-ctx.Done():
		}
		return fmt.Errorf("%s: %w", op, err)
	}
	select {
	case b := <-c.answers:
		return decodeAnswer(op, b, into)
	case <-ctx.Done():
		_ = c.Close()
		return fmt.Errorf("%s: %w", op, ctx.Err())
	case <-c.done:
	}
	select {
	case b := <-c.answers:
		return decodeAnswer(op, b, into)
	default:
	}
	if errors.Is(c.err, io.EOF) {
		return fmt.Errorf("%s: the cell daemon closed the connection", op)
	}
	return fmt.Errorf("%s: %w", op, c.err)
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
