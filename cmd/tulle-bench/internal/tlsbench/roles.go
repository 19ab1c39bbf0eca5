package tlsbench

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"tulle/cmd/tulle-bench/internal/bench"
)

const (
	backendRole = "tls-backend"
	clientRole  = "tls-client"
)

// Kinds of load.
const (
	requests   = "requests"   // one request after the other on each connection
	handshakes = "handshakes" // a connection after the other, each with a full handshake
	resumed    = "resumed"    // the same with a session of before
)

// load is what the client is told to do.
type load struct {
	Kind        string
	Address     string
	Bytes       int
	Connections int
	Millis      int64
	Plain       bool // without TLS
}

// result is what came of it.
type result struct {
	Count   int64
	Bytes   int64
	Seconds float64
	P50     float64 // of a request, µs
	Resumed int64
}

// rarely is how often client and backend collect garbage, by GOGC's measure: what
// they take of the processors, both proxies lack.
const rarely = 800

// runBackend answers "GET /N" with N bytes, on connections that stay.
func runBackend(ctx context.Context, _ []string, in io.Reader, out io.Writer) error {
	debug.SetGCPercent(rarely)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	fmt.Fprintln(out, l.Addr())
	go func() { io.Copy(io.Discard, in); l.Close() }() // the parent's end is ours
	body := make([]byte, 1<<20)
	for {
		c, err := l.Accept()
		if err != nil {
			return nil
		}
		go func() {
			defer c.Close()
			answer(c, body)
		}()
	}
}

func answer(c net.Conn, body []byte) {
	r := bufio.NewReaderSize(c, 512)
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return
		}
		fields := bytes.Fields(line)
		if len(fields) < 2 {
			return
		}
		n, err := strconv.Atoi(string(fields[1][1:]))
		if err != nil || n > len(body) {
			return
		}
		for len(bytes.TrimSpace(line)) > 0 {
			if line, err = r.ReadSlice('\n'); err != nil {
				return
			}
		}
		head := fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", n)
		if n <= 4096 {
			if _, err := c.Write(append(head, body[:n]...)); err != nil {
				return
			}
			continue
		}
		if _, err := (&net.Buffers{head, body[:n]}).WriteTo(c); err != nil {
			return
		}
	}
}

// runClient does one load after the other, as its input says, and writes results.
func runClient(ctx context.Context, _ []string, in io.Reader, out io.Writer) error {
	debug.SetGCPercent(rarely)
	dec, enc := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var l load
		if err := dec.Decode(&l); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		got, err := l.run(ctx)
		if err != nil {
			return err
		}
		if err := enc.Encode(got); err != nil {
			return err
		}
	}
}

// config asks both proxies for the same: TLS 1.3, whose first cipher is AES-128-GCM.
func (l load) config() *tls.Config {
	c := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519}}
	if l.Kind == resumed {
		c.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	}
	return c
}

// patience bounds one connection's beginning.
const patience = 10 * time.Second

// warm is how long a load runs before it counts.
const warm = 300 * time.Millisecond

func (l load) run(ctx context.Context) (result, error) {
	ctx, cancel := context.WithTimeout(ctx, warm+time.Duration(l.Millis)*time.Millisecond)
	defer cancel()
	var counting atomic.Bool
	var count, carried, again atomic.Int64
	var mu sync.Mutex
	var times []float64
	var failed error
	var wg sync.WaitGroup
	for range l.Connections {
		wg.Go(func() {
			w := worker{load: l, config: l.config(), counting: &counting}
			err := w.loop(ctx)
			count.Add(w.count)
			carried.Add(w.carried)
			again.Add(w.resumed)
			mu.Lock()
			defer mu.Unlock()
			times = append(times, w.times...)
			if ctx.Err() == nil {
				failed = errors.Join(failed, err)
			}
		})
	}
	time.Sleep(warm)
	counting.Store(true)
	begun := time.Now()
	wg.Wait()
	if failed != nil {
		return result{}, failed
	}
	r := result{Count: count.Load(), Bytes: carried.Load(), Seconds: time.Since(begun).Seconds(), P50: bench.Median(times), Resumed: again.Load()}
	if l.Kind == resumed && r.Resumed < r.Count*9/10 {
		return r, fmt.Errorf("only %d of %d handshakes were resumed", r.Resumed, r.Count)
	}
	if l.Kind == handshakes && r.Resumed > 0 {
		return r, fmt.Errorf("%d of %d handshakes were resumed", r.Resumed, r.Count)
	}
	return r, nil
}

// worker is one connection after the other, or one for all.
type worker struct {
	load
	config                  *tls.Config
	counting                *atomic.Bool
	count, carried, resumed int64
	times                   []float64
	again                   bool // the connection's handshake was resumed
	ticket                  bool // it could be: there was one before
}

func (w *worker) loop(ctx context.Context) (err error) {
	var c net.Conn
	var stop func() bool
	defer func() {
		if c != nil {
			stop()
			c.Close()
		}
	}()
	buf := make([]byte, 64<<10)
	for ctx.Err() == nil {
		if c == nil {
			if c, err = w.open(ctx); err != nil {
				return err
			}
			now := c
			stop = context.AfterFunc(ctx, func() { now.SetDeadline(time.Unix(1, 0)) })
		}
		if w.Kind != requests {
			// A byte from the far end: with TLS 1.3 the client cannot otherwise know
			// that the server has finished, nor get a ticket.
			if err = ask(c, 1, buf); err != nil {
				return err
			}
			stop()
			c.Close()
			c = nil
			// The first handshake of all cannot be resumed, and is none to count as such.
			if w.counting.Load() && (w.Kind != resumed || w.ticket) {
				w.count++
				if w.again {
					w.resumed++
				}
			}
			w.ticket = true
			continue
		}
		begun := time.Now()
		if err = ask(c, w.Bytes, buf); err != nil {
			return err
		}
		if w.counting.Load() {
			w.count++
			w.carried += int64(w.Bytes)
			if w.Connections == 1 {
				w.times = append(w.times, float64(time.Since(begun).Nanoseconds())/1e3)
			}
		}
	}
	return nil
}

func (w *worker) open(ctx context.Context) (net.Conn, error) {
	// Not ended by ctx: what is under way when the time is over may come to its end.
	raw, err := net.DialTimeout("tcp", w.Address, patience)
	if err != nil || w.Plain {
		return raw, err
	}
	c := tls.Client(raw, w.config)
	raw.SetDeadline(time.Now().Add(patience))
	defer raw.SetDeadline(time.Time{})
	if err := c.HandshakeContext(context.WithoutCancel(ctx)); err != nil {
		raw.Close()
		return nil, err
	}
	w.again = c.ConnectionState().DidResume
	if s := c.ConnectionState().CipherSuite; s != tls.TLS_AES_128_GCM_SHA256 {
		return nil, fmt.Errorf("cipher %s", tls.CipherSuiteName(s))
	}
	return c, nil
}

// ask sends one request and reads its answer.
func ask(c net.Conn, n int, buf []byte) error {
	if _, err := c.Write(fmt.Appendf(nil, "GET /%d HTTP/1.1\r\nHost: app\r\n\r\n", n)); err != nil {
		return err
	}
	left := -1
	for left != 0 {
		got, err := c.Read(buf)
		if got > 0 {
			b := buf[:got]
			if left < 0 {
				i := bytes.Index(b, []byte("\r\n\r\n"))
				if i < 0 {
					return errors.New("an answer's head came in parts")
				}
				left, b = n, b[i+4:]
			}
			left -= len(b)
		}
		if err != nil && left != 0 {
			return err
		}
	}
	return nil
}
