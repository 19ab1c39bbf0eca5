package whois

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"
)

var web = netip.MustParseAddr("10.255.1.2")

// dial is a connection of a container's to a server.
func dial(t *testing.T, s *Server, from netip.Addr) net.Conn {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(from, c)
	client.SetDeadline(time.Now().Add(20 * time.Second))
	return client
}

func server(t *testing.T, lookup Lookup) *Server {
	t.Helper()
	s := New(lookup, slog.New(slog.DiscardHandler))
	t.Cleanup(func() { s.Close() })
	return s
}

func TestAnswers(t *testing.T) {
	s := server(t, func(_ context.Context, q Question) (Answer, error) {
		switch q.Peer.Port() {
		case 1:
			return Answer{}, errors.New("it is over")
		case 2:
			return Answer{}, ErrBusy
		}
		return Answer{AppGUID: fmt.Sprintf("%s %d", q.Asker, q.Port), AppName: "web", SpaceGUID: "s"}, nil
	})
	c := dial(t, s, web)
	r := bufio.NewReader(c)
	for _, row := range []struct {
		method, target string
		code           int
		want           string
	}{
		{"GET", "/v1/whois?peer=10.255.7.3:41234", 200, `{"peer":"10.255.7.3:41234","app_guid":"10.255.1.2 0","app_name":"web","space_guid":"s"}`},
		{"GET", "/v1/whois?peer=[::ffff:10.255.7.3]:41234&port=8080", 200, `{"peer":"10.255.7.3:41234","app_guid":"10.255.1.2 8080","app_name":"web","space_guid":"s"}`},
		{"GET", "/v1/whois?peer=10.255.7.3:1", 404, `{"error":"10.255.7.3:1 is at the other end of no live connection of this container's: it is over"}`},
		{"GET", "/v1/whois?peer=10.255.7.3:2", 429, `{"error":"` + ErrBusy.Error() + `"}`},
		{"GET", "/v1/whois", 400, `{"error":"peer is`},
		{"GET", "/v1/whois?peer=web:80", 400, `{"error":"peer is`},
		{"GET", "/v1/whois?peer=10.255.7.3:0", 400, `{"error":"peer is`},
		{"GET", "/v1/whois?peer=10.255.7.3:3&port=70000", 400, `{"error":"port is`},
		{"POST", "/v1/whois?peer=10.255.7.3:3", 405, `{"error":"ask with GET"}`},
		{"GET", "/", 404, `{"error":"what there is here is /v1/whois`},
	} {
		fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: 169.254.0.2\r\nContent-Length: 0\r\n\r\n", row.method, row.target)
		got, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatalf("%s: %v", row.target, err)
		}
		b, err := io.ReadAll(got.Body)
		if err != nil || got.StatusCode != row.code || !strings.HasPrefix(strings.ReplaceAll(string(b), `\u0026`, "&"), row.want) || got.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %s: %d %s, %v; want %d %s", row.method, row.target, got.StatusCode, b, err, row.code, row.want)
		}
	}
}

// A container has so many connections and no more, whatever it does with them; one
// that ends makes room.
func TestBoundedConnections(t *testing.T) {
	s := server(t, func(context.Context, Question) (Answer, error) { return Answer{AppGUID: "g"}, nil })
	ask := func(c net.Conn) error {
		if _, err := io.WriteString(c, "GET /v1/whois?peer=10.255.7.3:5 HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			return err
		}
		_, err := http.ReadResponse(bufio.NewReader(c), nil)
		return err
	}
	var all []net.Conn
	for range ofOne {
		c := dial(t, s, web)
		if err := ask(c); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	if err := ask(dial(t, s, web)); err == nil {
		t.Error("one connection too many was answered")
	}
	if err := ask(dial(t, s, netip.MustParseAddr("10.255.1.3"))); err != nil {
		t.Errorf("another container: %v", err)
	}
	all[0].Close()
	for deadline := time.Now().Add(10 * time.Second); ask(dial(t, s, web)) != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a connection that ended made no room")
		}
	}
}

// A question that does not end, or is too long, ends the connection.
func TestBoundedQuestions(t *testing.T) {
	s := server(t, func(context.Context, Question) (Answer, error) { return Answer{}, nil })
	conns := map[string]net.Conn{}
	for name, sent := range map[string]string{
		"silent":   "",
		"half":     "GET /v1/whois HTTP/1.1\r\nHo",
		"oversize": "GET /v1/whois HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("x", 2*maxHead) + "\r\n\r\n",
		"garbage":  "\x16\x03\x01\x00\x05hello",
	} {
		c := dial(t, s, web)
		io.WriteString(c, sent)
		conns[name] = c
	}
	for name, c := range conns {
		b, err := io.ReadAll(c)
		var late net.Error
		if errors.As(err, &late) && late.Timeout() {
			t.Errorf("%s: still open", name)
		}
		if strings.Contains(string(b), "200 OK") {
			t.Errorf("%s: answered %s", name, b)
		}
	}
	s.Close()
	if _, err := io.ReadAll(dial(t, s, web)); err != nil {
		t.Errorf("a server that is closed: %v", err)
	}
}
