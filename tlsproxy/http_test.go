package tlsproxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// identified serves an app that is told who calls by a header. The caller is web.
func identified(t *testing.T, backend string, o Options, change ...func(*Site)) *fixture {
	t.Helper()
	s := site(certificate(t), backend)
	s.Identity = IdentityXFCC
	s.Caller = func(context.Context, netip.AddrPort) (Caller, error) {
		return Caller{App: "web", Space: "dev", Org: "acme"}, nil
	}
	for _, c := range change {
		c(s)
	}
	return serveSite(t, o, s)
}

// bySubject is what that app is told without a client certificate.
const bySubject = `Subject="OU=app:web,OU=space:dev,OU=organization:acme"`

// mirror answers with what it was asked, its body, and its trailers.
func mirror(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "Sum")
		body, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %q %q %v", r.Method, r.RequestURI, r.Header[headerXFCC], body, err)
		if sum := r.Trailer.Get("Sum"); sum != "" {
			w.Header().Set("Sum", sum)
		}
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func body(t *testing.T, r *http.Response, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A client of the library's, with connections that stay: methods, bodies of known
// and unknown length, trailers, expectations, and a header that it forges.
func TestHTTPAppIsToldWhoCalls(t *testing.T) {
	f := identified(t, mirror(t), Options{})
	client := &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true,
		ExpectContinueTimeout: patience, MaxConnsPerHost: 1}}
	defer client.CloseIdleConnections()
	told := fmt.Sprintf("%q", []string{bySubject})
	for _, c := range []struct {
		method, body string
		unknown      bool
		header       http.Header
		want         string
	}{
		{"GET", "", false, nil, "GET /a%2Fb?x=1 " + told + ` "" <nil>`},
		{"GET", "", false, http.Header{"X-Forwarded-Client-Cert": {"By=me", "By=me too"}, "X_forwarded_client_cert": {"By=me"}}, "GET /a%2Fb?x=1 " + told + ` "" <nil>`},
		{"POST", "hello", false, nil, "POST /a%2Fb?x=1 " + told + ` "hello" <nil>`},
		{"POST", "hello", true, nil, "POST /a%2Fb?x=1 " + told + ` "hello" <nil>`},
		{"PUT", "hello", false, http.Header{"Expect": {"100-continue"}}, "PUT /a%2Fb?x=1 " + told + ` "hello" <nil>`},
		{"HEAD", "", false, nil, ""},
		{"DELETE", "", false, nil, "DELETE /a%2Fb?x=1 " + told + ` "" <nil>`},
	} {
		var from io.Reader = strings.NewReader(c.body)
		if c.unknown {
			from = io.MultiReader(from)
		}
		r, err := http.NewRequest(c.method, "https://"+f.addr+"/a%2Fb?x=1", from)
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range c.header {
			r.Header[k] = v
		}
		if c.unknown {
			r.Trailer = http.Header{"Sum": {"42"}}
		}
		answer, err := client.Do(r)
		got := body(t, answer, err)
		if got != c.want || answer.ProtoMajor != 1 {
			t.Errorf("%s: %s, %q; want %q", c.method, answer.Proto, got, c.want)
		}
		if c.unknown && answer.Trailer.Get("Sum") != "42" {
			t.Errorf("trailers %v", answer.Trailer)
		}
	}
	if n := f.metrics.accepted.Load(); n != 1 {
		t.Errorf("%d connections, want one that stays", n)
	}
}

// With a certificate the header has what was verified, after a resumption too.
func TestHTTPHeaderOfACertificate(t *testing.T) {
	instances := newRoot(t)
	own := instances.issue(t, "db", time.Hour)
	f := identified(t, mirror(t), Options{}, func(s *Site) {
		s.Certificate = func(context.Context) (*tls.Certificate, error) { return &own, nil }
		s.Clients = func() *x509.CertPool { return instances.pool }
	})
	cert := instances.issue(t, "web", time.Hour)
	sum := sha256.Sum256(cert.Certificate[0])
	want := fmt.Sprintf("%q", []string{`By=spiffe://tulle.internal/app/db;Hash=` + hex.EncodeToString(sum[:]) + `;Subject="CN=instance-1,OU=app:web";URI=spiffe://tulle.internal/app/web`})
	config := with(cert)
	config.InsecureSkipVerify, config.ServerName, config.ClientSessionCache = true, "db", tls.NewLRUClientSessionCache(1)
	for i := range 2 {
		client := &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
		answer, err := client.Get("https://" + f.addr + "/")
		if got := body(t, answer, err); !strings.Contains(got, want) {
			t.Errorf("the app was told %s, want %s", got, want)
		}
		if answer.TLS.DidResume != (i == 1) {
			t.Errorf("connection %d: resumed %t", i, answer.TLS.DidResume)
		}
	}
}

func TestXFCC(t *testing.T) {
	forged := x509.Certificate{Raw: []byte{1}}
	forged.Subject.CommonName = "a\",b;URI=x\r\nX-Admin: 1"
	forged.DNSNames = []string{"a,By=b"}
	sum := sha256.Sum256([]byte{1})
	for _, c := range []struct{ got, want string }{
		{xfcc(nil, nil, Caller{App: "a"}), `Subject="OU=app:a"`},
		{xfcc(nil, nil, Caller{App: `a",b`}), `Subject="OU=app:a\\\"\\,b"`},
		{xfcc(nil, &forged, Caller{}), `Hash=` + hex.EncodeToString(sum[:]) + `;Subject="CN=a\\\"\\,b\\;URI=x` + `X-Admin: 1";DNS="a,By=b"`},
	} {
		if c.got != c.want {
			t.Errorf("got %s, want %s", c.got, c.want)
		}
	}
}

// raw sends bytes and returns all that comes.
func (f *fixture) raw(t *testing.T, sent string) string {
	t.Helper()
	c := f.dial(t)
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, sent); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil {
		t.Errorf("after %q: %q, %v", sent, b, err)
	}
	return string(b)
}

// What may be read in two ways is answered with 400 and an end, in its place after
// the answers to what came before; the app never sees it. It is counted and logged.
func TestHTTPAmbiguousRequestsAreRefused(t *testing.T) {
	var log lines
	seen := make(chan string, 100)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		seen <- fmt.Sprintf("%s %s %v", r.URL.Path, b, err)
		w.Write(bytes.Repeat([]byte("x"), 100_000))
	}))
	defer app.Close()
	f := identified(t, strings.TrimPrefix(app.URL, "http://"), Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	const good = "GET /good HTTP/1.1\r\nHost: db\r\n\r\n"
	n := 0
	for why, bad := range map[string]string{
		"both Content-Length and Transfer-Encoding": "POST /bad HTTP/1.1\r\nHost: db\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"2 Content-Length headers":                  "POST /bad HTTP/1.1\r\nHost: db\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n",
		"folded":                                    "GET /bad HTTP/1.1\r\nHost: db\r\nX-Forwarded-Client-Cert:\r\n By=me\r\n\r\n",
		"bare line feed":                            "GET /bad HTTP/1.1\nHost: db\n\n",
		"HTTP/2 where":                              "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	} {
		for _, before := range []string{"", good, good + good} {
			n++
			got := f.raw(t, before+bad)
			answers := strings.Count(got, "HTTP/1.1 200 OK")
			if want := strings.Count(before, "good"); answers != want {
				t.Errorf("%s after %d requests: %d answers", why, want, answers)
			}
			last := got[max(0, strings.LastIndex(got, "HTTP/1.1 4")):]
			if !strings.HasPrefix(last, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n") || !strings.Contains(last, why) {
				t.Errorf("%s: the last answer is %.200q", why, last)
			}
			for range answers {
				if s := <-seen; s != "/good  <nil>" {
					t.Errorf("%s: the app was asked %q", why, s)
				}
			}
		}
	}
	// A body that becomes nonsense: the app has its beginning, and knows that it is cut.
	got := f.raw(t, "POST /cut HTTP/1.1\r\nHost: db\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\nnonsense\r\n")
	if s := <-seen; s != "/cut hi unexpected EOF" {
		t.Errorf("of a chunked body that is cut the app read %q", s)
	}
	if strings.Count(got, "HTTP/1.1 ") != 1 {
		t.Errorf("a request that is cut is answered %.200q", got)
	}
	f.awaitEnds(t, badRequest, uint64(n+1))
	if got := log.String(); !strings.Contains(got, "result=bad_request") || !strings.Contains(got, "request refused: ") {
		t.Errorf("log: %s", got)
	}
	if len(seen) > 0 {
		t.Errorf("the app was asked %q too", <-seen)
	}
}

// An app that does not end what it was asked holds nobody for long, and no 400
// gets into the middle of its answer.
func TestHTTPRefusalBesideAnAnswerThatNeverEnds(t *testing.T) {
	app := listenTCP(t)
	f := identified(t, app.Addr().String(), Options{})
	c := f.dial(t)
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: db\r\n\r\n")
	backend := accept(t, app)
	io.WriteString(backend, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
	io.WriteString(c, "nonsense\r\n\r\n")
	c.SetDeadline(time.Now().Add(2 * patience))
	got, err := io.ReadAll(c)
	if err == nil || strings.Contains(string(got), "400") {
		t.Errorf("the client read %q, %v; want it cut", got, err)
	}
	f.awaitEnds(t, badRequest, 1)
}

// Requests that are sent together are answered in order; each has the header.
func TestHTTPPipelining(t *testing.T) {
	f := identified(t, mirror(t), Options{})
	c := f.dial(t)
	var sent strings.Builder
	for i := range 50 {
		fmt.Fprintf(&sent, "POST /%d HTTP/1.1\r\nHost: db\r\nx-forwarded-client-cert: me\r\nContent-Length: 4\r\n\r\n%04d", i, i)
	}
	go io.WriteString(c, sent.String())
	c.SetDeadline(time.Now().Add(patience))
	r := bufio.NewReader(c)
	for i := range 50 {
		answer, err := http.ReadResponse(r, nil)
		if got, want := body(t, answer, err), fmt.Sprintf("POST /%d %q \"%04d\" <nil>", i, []string{bySubject}, i); got != want {
			t.Errorf("answer %d is %q, want %q", i, got, want)
		}
	}
}

// A client that ends its half still reads the whole answer; an answer begins before
// the request has ended, and nothing waits in between.
func TestHTTPStreamsBothWays(t *testing.T) {
	app := listenTCP(t)
	f := identified(t, app.Addr().String(), Options{})
	c := f.dial(t)
	c.SetDeadline(time.Now().Add(patience))
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: db\r\nTransfer-Encoding: chunked\r\n\r\n")
	backend := accept(t, app)
	in, out := bufio.NewReader(backend), bufio.NewReader(c)
	expect := func(r *bufio.Reader, want string) {
		t.Helper()
		b := make([]byte, len(want))
		if _, err := io.ReadFull(r, b); err != nil || string(b) != want {
			t.Fatalf("read %q, %v; want %q", b, err, want)
		}
	}
	expect(in, "POST / HTTP/1.1\r\nHost: db\r\nTransfer-Encoding: chunked\r\n"+headerXFCC+": "+bySubject+"\r\n\r\n")
	io.WriteString(backend, "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
	expect(out, "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
	for i := range 10 {
		chunk := fmt.Sprintf("1\r\n%d\r\n", i)
		io.WriteString(c, chunk)
		expect(in, chunk)
		io.WriteString(backend, chunk)
		expect(out, chunk)
	}
	io.WriteString(c, "0\r\n\r\n")
	c.CloseWrite()
	expect(in, "0\r\n\r\n")
	if _, err := in.ReadByte(); err != io.EOF {
		t.Errorf("after the client's end the app reads %v", err)
	}
	large := bytes.Repeat([]byte("x"), 3<<20)
	go func() {
		fmt.Fprintf(backend, "%x\r\n%s\r\n0\r\n\r\n", len(large), large)
		backend.CloseWrite()
	}()
	got, err := io.ReadAll(out)
	if want := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(large), large); err != nil || string(got) != want {
		t.Errorf("the client read %d bytes, %v; want %d", len(got), err, len(want))
	}
	f.awaitEnds(t, completed, 1)
}

// A WebSocket is bytes in both directions once the app has taken it.
func TestHTTPWebSocket(t *testing.T) {
	app := listenTCP(t)
	f := identified(t, app.Addr().String(), Options{})
	c := f.dial(t)
	c.SetDeadline(time.Now().Add(patience))
	io.WriteString(c, "GET /ws HTTP/1.1\r\nHost: db\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Forwarded-Client-Cert: me\r\n\r\n")
	backend := accept(t, app)
	r := bufio.NewReader(backend)
	req, err := http.ReadRequest(r)
	if err != nil || req.Header.Get("Upgrade") != "websocket" || req.Header.Get(headerXFCC) != bySubject {
		t.Fatalf("the app was asked %+v, %v", req, err)
	}
	const switching = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
	io.WriteString(backend, switching)
	if b := make([]byte, len(switching)); true {
		if _, err := io.ReadFull(c, b); err != nil || string(b) != switching {
			t.Fatalf("the client read %q, %v", b, err)
		}
	}
	for _, frame := range []string{"\x81\x05hello", "\n\n\x00X-Forwarded-Client-Cert: me\r\n\r\n"} {
		io.WriteString(c, frame)
		b := make([]byte, len(frame))
		if _, err := io.ReadFull(r, b); err != nil || string(b) != frame {
			t.Errorf("the app read %q, %v; want %q", b, err, frame)
		}
		io.WriteString(backend, frame)
		if _, err := io.ReadFull(c, b); err != nil || string(b) != frame {
			t.Errorf("the client read %q, %v; want %q", b, err, frame)
		}
	}
	c.CloseWrite()
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("after the client's end the app reads %v", err)
	}
	backend.CloseWrite()
	f.awaitEnds(t, completed, 1)
}

// A header that does not end is refused in time, and so is a client with HTTP/2
// alone, in the handshake.
func TestHTTPSlowHeaderAndHTTP2(t *testing.T) {
	f := identified(t, mirror(t), Options{HeadTimeout: 100 * time.Millisecond})
	if got := f.raw(t, "GET / HTTP/1.1\r\nHo"); !strings.Contains(got, "400 Bad Request") || !strings.Contains(got, "in time") {
		t.Errorf("a header that does not end is answered %q", got)
	}
	c, err := f.try(&tls.Config{NextProtos: []string{"h2"}})
	if err == nil {
		c.Close()
	}
	var alert tls.AlertError
	if !errors.As(err, &alert) && (err == nil || !strings.Contains(err.Error(), "no application protocol")) {
		t.Errorf("a client with HTTP/2 alone: %v", err)
	}
	if c, err = f.try(&tls.Config{NextProtos: []string{"h2", "http/1.1"}}); err != nil || c.ConnectionState().NegotiatedProtocol != "http/1.1" {
		t.Errorf("with both: %v", err)
	} else {
		c.Close()
	}
	// Between requests a client may be silent for as long as it likes.
	if c, err = f.try(&tls.Config{}); err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(patience))
	ask := func() {
		t.Helper()
		io.WriteString(c, "GET / HTTP/1.1\r\n")
		io.WriteString(c, "Host: db\r\n\r\n")
		answer, err := http.ReadResponse(bufio.NewReader(c), nil)
		body(t, answer, err)
	}
	ask()
	time.Sleep(150 * time.Millisecond)
	ask()
	c.Close()
	f.awaitEnds(t, badRequest, 1)
}
