package echo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	defaultTimeout = 5 * time.Second
	// retryEvery keeps a repeated attempt below what a cell answers per second.
	retryEvery = 2 * time.Millisecond
)

// prober works requests off, each in a goroutine of its own.
type prober struct {
	emit func(Event)

	mu      sync.Mutex
	running map[uint64]context.CancelFunc // guarded by mu
	wait    sync.WaitGroup
}

// run reads requests until r ends, then stops what is under way.
func (p *prober) run(ctx context.Context, r io.Reader) error {
	ctx, cancel := context.WithCancel(ctx)
	defer p.wait.Wait()
	defer cancel()
	p.running = make(map[uint64]context.CancelFunc)
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		var req Request
		if err := json.Unmarshal(lines.Bytes(), &req); err != nil {
			return fmt.Errorf("read a request: %w", err)
		}
		if req.Op == OpStop {
			p.stop(req.Target)
			continue
		}
		one, done := context.WithCancel(ctx)
		p.mu.Lock()
		p.running[req.ID] = done
		p.mu.Unlock()
		p.wait.Go(func() {
			defer p.stop(req.ID)
			e := p.do(one, req)
			e.ID, e.Kind = req.ID, EventDone
			p.emit(e)
		})
	}
	return lines.Err()
}

func (p *prober) stop(id uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if cancel, ok := p.running[id]; ok {
		cancel()
		delete(p.running, id)
	}
}

func (p *prober) do(ctx context.Context, req Request) Event {
	if req.Timeout == 0 {
		req.Timeout = defaultTimeout
	}
	switch req.Op {
	case OpDial:
		return repeat(ctx, req, dial)
	case OpGet:
		return repeat(ctx, req, get)
	case OpGetTLS:
		return repeat(ctx, req, getTLS)
	case OpUDP:
		return repeat(ctx, req, echoOnce)
	case OpDownload:
		return p.download(ctx, req)
	case OpHold:
		return p.hold(ctx, req)
	case OpDescribe:
		return Event{Outcome: OK, At: time.Now(), Self: describe()}
	}
	return Event{Outcome: Failed, Error: fmt.Sprintf("no operation %q", req.Op), At: time.Now()}
}

// repeat makes attempts until one comes to req.Until or patience is over;
// without Until, one.
func repeat(ctx context.Context, req Request, attempt func(context.Context, Request, *Event) error) Event {
	// An attempt under way when patience ends is still told as what it comes to.
	over := ctx
	if req.Until != "" && req.Patience > 0 {
		var cancel context.CancelFunc
		over, cancel = context.WithTimeout(ctx, req.Patience)
		defer cancel()
	}
	again := time.NewTicker(retryEvery)
	defer again.Stop()
	for n := 1; ; n++ {
		e := Event{Attempts: n}
		one, cancel := context.WithTimeout(ctx, req.Timeout)
		begun := time.Now()
		err := attempt(one, req, &e)
		cancel()
		e.At = time.Now()
		e.Took = e.At.Sub(begun)
		e.Outcome, e.Error = outcome(err), text(err)
		if req.Until == "" || e.Outcome == req.Until || over.Err() != nil {
			return e
		}
		select {
		case <-over.Done():
			return e
		case <-again.C:
		}
	}
}

func dial(ctx context.Context, req Request, e *Event) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", req.Address)
	if err != nil {
		return err
	}
	e.Local = conn.LocalAddr().String()
	return conn.Close()
}

func get(ctx context.Context, req Request, e *Event) error {
	conn, body, err := request(ctx, req, "/")
	if err != nil {
		return err
	}
	defer conn.Close()
	defer interrupt(ctx, conn)()
	answer, err := io.ReadAll(io.LimitReader(body, 4096))
	e.Text, e.Local = string(bytes.TrimSpace(answer)), conn.LocalAddr().String()
	return err
}

// getTLS verifies as any program does: by the host of the address and the roots
// that the container has.
func getTLS(ctx context.Context, req Request, e *Event) error {
	own := http.Transport{DisableKeepAlives: true}
	defer own.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+req.Address+"/", nil)
	if err != nil {
		return err
	}
	answer, err := (&http.Client{Transport: &own}).Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 4096))
	e.Text = string(bytes.TrimSpace(body))
	return err
}

func echoOnce(ctx context.Context, req Request, e *Event) error {
	conn, err := new(net.Dialer).DialContext(ctx, "udp", req.Address)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer interrupt(ctx, conn)()
	e.Local = conn.LocalAddr().String()
	payload := base[:min(max(req.Bytes, 16), 60000)]
	if _, err := conn.Write(payload); err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	n, err := conn.Read(buf)
	if err != nil {
		return err
	}
	e.Bytes = int64(n)
	if !bytes.Equal(buf[:n], payload) {
		return errCorrupt
	}
	return nil
}

// download reads the whole pattern. Its time counts from the first byte asked.
func (p *prober) download(ctx context.Context, req Request) Event {
	if req.Limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, req.Limit, context.Canceled)
		defer cancel()
	}
	return p.connection(ctx, req, fmt.Sprintf("/download?bytes=%d&rate=%d", req.Bytes, req.Rate), func(body io.Reader) (int64, error) {
		marked := req.Mark == 0
		return verify(body, req.Bytes, func(n int64) {
			if !marked && n >= req.Mark {
				marked = true
				p.emit(Event{ID: req.ID, Kind: EventMark, At: time.Now(), Bytes: n})
			}
		})
	})
}

// hold keeps a connection open and silent until it ends.
func (p *prober) hold(ctx context.Context, req Request) Event {
	return p.connection(ctx, req, "/hold", func(body io.Reader) (int64, error) {
		n, err := io.Copy(io.Discard, body)
		if err == nil {
			err = io.EOF
		}
		return n, err
	})
}

// connection is the life of one request whose answer takes its time.
func (p *prober) connection(ctx context.Context, req Request, path string, read func(io.Reader) (int64, error)) Event {
	begun := time.Now()
	conn, body, err := request(ctx, req, path)
	if err != nil {
		return Event{At: time.Now(), Took: time.Since(begun), Outcome: outcome(err), Error: text(err)}
	}
	defer conn.Close()
	defer interrupt(ctx, conn)()
	e := Event{ID: req.ID, Kind: EventBegun, At: time.Now(), Local: conn.LocalAddr().String(), Peer: conn.RemoteAddr().String()}
	p.emit(e)
	e.Bytes, err = read(body)
	e.At = time.Now()
	e.Took = e.At.Sub(begun)
	if cause := context.Cause(ctx); cause != nil && outcome(err) == TimedOut {
		err = cause
	}
	e.Outcome, e.Error = outcome(err), text(err)
	return e
}

// request sends a GET on a connection of its own and returns the answer's
// body. The connection is the caller's to close.
func request(ctx context.Context, req Request, path string) (net.Conn, io.Reader, error) {
	dialing, cancel := context.WithTimeout(ctx, req.Timeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(dialing, "tcp", req.Address)
	if err != nil {
		return nil, nil, err
	}
	release := interrupt(dialing, conn)
	defer release()
	fail := func(err error) (net.Conn, io.Reader, error) {
		conn.Close()
		return nil, nil, err
	}
	ask, err := http.NewRequest(http.MethodGet, "http://"+req.Address+path, nil)
	if err != nil {
		return fail(err)
	}
	if err := ask.Write(conn); err != nil {
		return fail(err)
	}
	answer, err := http.ReadResponse(bufio.NewReaderSize(conn, blockLen), ask)
	if err != nil {
		return fail(err)
	}
	if answer.StatusCode != http.StatusOK {
		return fail(fmt.Errorf("answer %s", answer.Status))
	}
	return conn, answer.Body, nil
}

// interrupt wakes what waits on conn when ctx ends. The function returned
// takes that back.
func interrupt(ctx context.Context, conn net.Conn) func() {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	return func() { stop() }
}
