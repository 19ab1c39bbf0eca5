package echo

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// server is the app: HTTP on TCP listeners and an echo on UDP sockets.
type server struct {
	name string
	emit func(Event) // any goroutine
	http http.Server

	listeners []net.Listener
	sockets   []*net.UDPConn
	wait      sync.WaitGroup
}

// listen opens all sockets or none. Addresses are host:port.
func listen(name string, tcp, udp []string, emit func(Event)) (*server, error) {
	s := &server{name: name, emit: emit}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.whoami)
	mux.HandleFunc("GET /download", s.download)
	mux.HandleFunc("GET /hold", s.hold)
	s.http = http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	for _, address := range tcp {
		l, err := net.Listen("tcp", address)
		if err != nil {
			s.close()
			return nil, err
		}
		s.listeners = append(s.listeners, l)
	}
	for _, address := range udp {
		at, err := net.ResolveUDPAddr("udp", address)
		if err != nil {
			s.close()
			return nil, err
		}
		c, err := net.ListenUDP("udp", at)
		if err != nil {
			s.close()
			return nil, err
		}
		s.sockets = append(s.sockets, c)
	}
	return s, nil
}

func (s *server) serve() {
	for _, l := range s.listeners {
		s.wait.Go(func() { s.http.Serve(l) })
	}
	for _, c := range s.sockets {
		s.wait.Go(func() { echoDatagrams(c) })
	}
}

func (s *server) close() {
	s.http.Close()
	for _, l := range s.listeners {
		l.Close()
	}
	for _, c := range s.sockets {
		c.Close()
	}
	s.wait.Wait()
}

// echoDatagrams sends each datagram back to where it came from until the
// socket is closed. An ICMP error that an earlier echo earned is no reason to
// stop.
func echoDatagrams(c *net.UDPConn) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			c.WriteToUDPAddrPort(buf[:n], from)
		}
	}
}

// whoami says who answered and who asked.
func (s *server) whoami(w http.ResponseWriter, r *http.Request) {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(struct {
		Name    string `json:"name"`
		Address string `json:"address"`
		Peer    string `json:"peer"`
	}{s.name, local.String(), r.RemoteAddr})
}

// maxDownload bounds what one request can ask for.
const maxDownload = 1 << 40

// download streams ?bytes= of the pattern, at ?rate= bytes a second if given.
func (s *server) download(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.ParseInt(r.FormValue("bytes"), 10, 64)
	if err != nil || n < 0 || n > maxDownload {
		http.Error(w, "bytes must be a number, 0 to 2^40", http.StatusBadRequest)
		return
	}
	rate, err := strconv.ParseInt("0"+r.FormValue("rate"), 10, 64)
	if err != nil {
		http.Error(w, "rate must be a number of bytes a second", http.StatusBadRequest)
		return
	}
	s.serveConn(w, r, func(conn net.Conn, far *farEnd) (int64, error) {
		fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\nConnection: close\r\n\r\n", n)
		sent, err := send(conn, n, rate, far.gone)
		if err == nil {
			conn.(*net.TCPConn).CloseWrite()
			<-far.gone // its close says that it has everything
		}
		return sent, err
	})
}

// hold answers and then says nothing until the connection ends.
func (s *server) hold(w http.ResponseWriter, r *http.Request) {
	s.serveConn(w, r, func(conn net.Conn, far *farEnd) (int64, error) {
		if _, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"); err != nil {
			return 0, err
		}
		<-far.gone
		return 0, far.err
	})
}

// farEnd is what a read that expects nothing learns about the other side.
type farEnd struct {
	gone chan struct{}
	err  error // set when gone is closed
}

// serveConn takes the connection from net/http, which would hide what it ends
// with, and tells the beginning and the end of work on it.
func (s *server) serveConn(w http.ResponseWriter, r *http.Request, work func(net.Conn, *farEnd) (int64, error)) {
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	far := &farEnd{gone: make(chan struct{})}
	go watch(far, buffered.Reader)
	begun := time.Now()
	s.emit(Event{Kind: EventServing, At: begun, Path: r.URL.Path, Peer: r.RemoteAddr, Local: conn.LocalAddr().String()})
	n, err := work(conn, far)
	at := time.Now()
	conn.Close()
	<-far.gone
	// Of a reset one call hears ECONNRESET and the other only that it is over.
	if outcome(far.err) == Reset {
		err = far.err
	}
	s.emit(Event{Kind: EventServed, At: at, Path: r.URL.Path, Peer: r.RemoteAddr, Local: conn.LocalAddr().String(),
		Bytes: n, Took: at.Sub(begun), Outcome: outcome(err), Error: text(err)})
}

func watch(far *farEnd, r *bufio.Reader) {
	_, far.err = r.Discard(1 << 30)
	close(far.gone)
}

var errFarEnd = fmt.Errorf("the far end is gone: %w", io.EOF)

// send writes n bytes of the pattern, paced if rate is not 0, until done or gone.
func send(w io.Writer, n, rate int64, gone <-chan struct{}) (int64, error) {
	const beat = 10 * time.Millisecond
	var (
		p     = newPattern()
		sent  int64
		block []byte
		ticks <-chan time.Time
	)
	if rate > 0 {
		t := time.NewTicker(beat)
		defer t.Stop()
		ticks = t.C
	}
	for begun := time.Now(); sent < n; {
		piece := n - sent
		if ticks != nil {
			select {
			case now := <-ticks:
				piece = min(piece, int64(now.Sub(begun).Seconds()*float64(rate))-sent)
			case <-gone:
				return sent, errFarEnd
			}
		}
		for piece > 0 {
			if len(block) == 0 {
				block = p.nextBlock()
			}
			k, err := w.Write(block[:min(int64(len(block)), piece)])
			block, piece, sent = block[k:], piece-int64(k), sent+int64(k)
			if err != nil {
				return sent, err
			}
		}
	}
	return sent, nil
}
