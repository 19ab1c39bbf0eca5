package http1

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/iotest"
)

const (
	name  = "X-Forwarded-Client-Cert"
	value = "By=spiffe://t/app/db;Subject=\"OU=app:web\""
	set   = name + ": " + value + "\r\n"
)

// all is what an app gets of what a client sends, and the error, nil for the
// client's end.
func all(sent string, up *Upgrade, wrap func(io.Reader) io.Reader) (string, error) {
	b, err := io.ReadAll(NewReader(wrap(strings.NewReader(sent)), name, value, up))
	return string(b), err
}

func asIs(r io.Reader) io.Reader { return r }

// What a client may send, and what the app gets of it; ¶ is CR LF, and ^ in what
// is wanted where the header is set.
var taken = []struct{ what, sent, want string }{
	{"one request", "GET / HTTP/1.1¶Host: db¶¶", "GET / HTTP/1.1¶Host: db¶^¶"},
	{"order, case and spaces stay", "GET /a%2fb?x=1;y HTTP/1.1¶hOST:db¶X-B:  2 ¶x-a: 1¶X-B: 3¶¶", "GET /a%2fb?x=1;y HTTP/1.1¶hOST:db¶X-B:  2 ¶x-a: 1¶X-B: 3¶^¶"},
	{"the forged header goes", "GET / HTTP/1.1¶Host: db¶X-Forwarded-Client-Cert: By=me¶A: 1¶¶", "GET / HTTP/1.1¶Host: db¶A: 1¶^¶"},
	{"in any case and number", "GET / HTTP/1.1¶x-forwarded-client-CERT: 1¶Host: db¶X-FORWARDED-CLIENT-CERT:¶x-Forwarded-client-cert: 2¶¶", "GET / HTTP/1.1¶Host: db¶^¶"},
	{"in the spellings of CGI", "GET / HTTP/1.1¶Host: db¶X_Forwarded_Client_Cert: 1¶X-Forwarded_Client.Cert: 1¶X!Forwarded|Client~Cert: 2¶¶", "GET / HTTP/1.1¶Host: db¶^¶"},
	{"others like it stay", "GET / HTTP/1.1¶Host: db¶X-Forwarded-For: 1¶X-Forwarded-Client-Certs: 1¶¶", "GET / HTTP/1.1¶Host: db¶X-Forwarded-For: 1¶X-Forwarded-Client-Certs: 1¶^¶"},
	{"a body of a length", "POST / HTTP/1.1¶Host: db¶Content-Length: 5¶¶helloGET /2 HTTP/1.1¶Host: db¶¶", "POST / HTTP/1.1¶Host: db¶Content-Length: 5¶^¶helloGET /2 HTTP/1.1¶Host: db¶^¶"},
	{"a body that looks like a request", "POST / HTTP/1.1¶Host: db¶Content-Length: 33¶¶GET /2 HTTP/1.1¶Host: db¶¶¶¶", "POST / HTTP/1.1¶Host: db¶Content-Length: 33¶^¶GET /2 HTTP/1.1¶Host: db¶¶¶¶"},
	{"no body", "POST / HTTP/1.1¶Host: db¶Content-Length: 0¶¶GET / HTTP/1.1¶Host: db¶¶", "POST / HTTP/1.1¶Host: db¶Content-Length: 0¶^¶GET / HTTP/1.1¶Host: db¶^¶"},
	{"chunks", "POST / HTTP/1.1¶Host: db¶Transfer-Encoding: Chunked¶¶5¶hello¶000A¶0123456789¶0¶¶GET / HTTP/1.1¶Host: db¶¶",
		"POST / HTTP/1.1¶Host: db¶Transfer-Encoding: Chunked¶^¶5¶hello¶000A¶0123456789¶0¶¶GET / HTTP/1.1¶Host: db¶^¶"},
	{"chunk extensions go", "POST / HTTP/1.1¶Host: db¶Transfer-Encoding: chunked¶¶2;a=b;c=\"d\"¶hi¶0 ;x¶¶", "POST / HTTP/1.1¶Host: db¶Transfer-Encoding: chunked¶^¶2¶hi¶0¶¶"},
	{"trailers stay, the forged one goes", "POST / HTTP/1.1¶Host: db¶Transfer-Encoding: chunked¶Trailer: Sum¶¶2¶hi¶0¶Sum: 1¶x_forwarded_client_cert: me¶¶GET / HTTP/1.1¶Host: db¶¶",
		"POST / HTTP/1.1¶Host: db¶Transfer-Encoding: chunked¶Trailer: Sum¶^¶2¶hi¶0¶Sum: 1¶¶GET / HTTP/1.1¶Host: db¶^¶"},
	{"expectations", "PUT / HTTP/1.1¶Host: db¶Expect: 100-continue¶Content-Length: 2¶¶hi", "PUT / HTTP/1.1¶Host: db¶Expect: 100-continue¶Content-Length: 2¶^¶hi"},
	{"HTTP/1.0", "GET / HTTP/1.0¶¶", "GET / HTTP/1.0¶^¶"},
	{"HTTP/1.0 with a length", "POST / HTTP/1.0¶Content-Length: 2¶¶hi", "POST / HTTP/1.0¶Content-Length: 2¶^¶hi"},
	{"empty lines before", "¶¶GET / HTTP/1.1¶Host: db¶¶¶GET /2 HTTP/1.1¶Host: db¶¶", "GET / HTTP/1.1¶Host: db¶^¶GET /2 HTTP/1.1¶Host: db¶^¶"},
	{"all forms of a target", "OPTIONS * HTTP/1.1¶Host: db¶¶GET http://db/x HTTP/1.1¶Host: db¶¶", "OPTIONS * HTTP/1.1¶Host: db¶^¶GET http://db/x HTTP/1.1¶Host: db¶^¶"},
	{"no HTTP/2 by upgrade", "GET / HTTP/1.1¶Host: db¶Connection: Upgrade, HTTP2-Settings¶Upgrade: h2c¶HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA¶¶", "GET / HTTP/1.1¶Host: db¶Connection: Upgrade, HTTP2-Settings¶HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA¶^¶"},
	{"nor beside a WebSocket", "GET / HTTP/1.1¶Host: db¶Connection: Upgrade¶Upgrade: websocket, h2c¶¶", "GET / HTTP/1.1¶Host: db¶Connection: Upgrade¶^¶"},
	{"nor to what is no WebSocket", "GET / HTTP/1.1¶Host: db¶Connection: Upgrade¶Upgrade: websoc\u212Aet¶¶", "GET / HTTP/1.1¶Host: db¶Connection: Upgrade¶^¶"},
	{"no WebSocket with a body", "POST / HTTP/1.1¶Host: db¶Connection: Upgrade¶Upgrade: websocket¶Content-Length: 2¶¶hi", "POST / HTTP/1.1¶Host: db¶Connection: Upgrade¶Content-Length: 2¶^¶hi"},
	{"nor where it is not the first request", "GET / HTTP/1.1¶Host: db¶¶GET / HTTP/1.1¶Host: db¶Connection: Upgrade¶Upgrade: websocket¶¶", "GET / HTTP/1.1¶Host: db¶^¶GET / HTTP/1.1¶Host: db¶Connection: Upgrade¶^¶"},
	{"the client's end", "", ""},
}

func lines(s string) string {
	return strings.NewReplacer("¶", "\r\n", "^", set).Replace(s)
}

func TestWhatIsTaken(t *testing.T) {
	for _, c := range taken {
		for how, wrap := range map[string]func(io.Reader) io.Reader{"at once": asIs, "byte by byte": iotest.OneByteReader, "with its end": iotest.DataErrReader} {
			up := NewUpgrade(strings.NewReader(""))
			if got, err := all(lines(c.sent), up, wrap); err != nil || got != lines(c.want) {
				t.Errorf("%s, %s:\n got %q, %v\nwant %q", c.what, how, got, err, lines(c.want))
			}
		}
	}
}

// What could be read in two ways, by whatever is behind, is refused, and no byte of
// that request's head passes. The second part of each row is in the reason.
var refusals = []struct{ sent, why string }{
	{"GET / HTTP/1.1¶Host: db¶Content-Length: 5¶Transfer-Encoding: chunked¶¶0¶¶", "both"},
	{"GET / HTTP/1.1¶Host: db¶Transfer-Encoding: chunked¶Content-Length: 5¶¶0¶¶", "both"},
	{"GET / HTTP/1.1¶Host: db¶Content-Length: 5¶Content-Length: 6¶¶helloh", "2 Content-Length"},
	{"GET / HTTP/1.1¶Host: db¶Content-Length: 5¶Content-Length: 5¶¶hello", "2 Content-Length"},
	{"GET / HTTP/1.1¶Host: db¶Content-Length: 5, 5¶¶hello", "no number"},
	{"GET / HTTP/1.1¶Host: db¶Content-Length: +5¶¶hello", "no number"},
	{"GET / HTTP/1.1¶Host: db¶Content-Length: -5¶¶hello", "no number"},
	{"GET / HTTP/1.1¶Host: db¶Content-Length: 0x5¶¶hello", "no number"},
	{"GET / HTTP/1.1¶Host: db¶Content-Length: 5 5¶¶hello", "no number"},
	{"GET / HTTP/1.1¶Host: db¶Content-Length:¶¶hello", "0 digits"},
	{"GET / HTTP/1.1¶Host: db¶Content-Length: 18446744073709551621¶¶hello", "20 digits"},
	{"GET / HTTP/1.1¶Host: db¶Content_Length: 5¶¶hello", "another spelling"},
	{"GET / HTTP/1.1¶Host: db¶Transfer_Encoding: chunked¶¶0¶¶", "another spelling"},
	{"GET / HTTP/1.1¶Host: db¶Transfer-Encoding: chunked, gzip¶¶0¶¶", "not chunked alone"},
	{"GET / HTTP/1.1¶Host: db¶Transfer-Encoding: gzip, chunked¶¶0¶¶", "not chunked alone"},
	{"GET / HTTP/1.1¶Host: db¶Transfer-Encoding: chunked, chunked¶¶0¶¶", "not chunked alone"},
	{"GET / HTTP/1.1¶Host: db¶Transfer-Encoding: xchunked¶¶0¶¶", "not chunked alone"},
	{"GET / HTTP/1.1¶Host: db¶Transfer-Encoding: chun\u212Aed¶¶0¶¶", "not chunked alone"}, // KELVIN SIGN, whose small letter is k
	{"GET / HTTP/1.1¶Host: db¶Transfer-Encoding: identity¶¶", "not chunked alone"},
	{"GET / HTTP/1.1¶Host: db¶Transfer-Encoding:¶¶", "not chunked alone"},
	{"GET / HTTP/1.1¶Host: db¶Transfer-Encoding: \x0bchunked¶¶0¶¶", "control character"},
	{"GET / HTTP/1.1¶Host: db¶Transfer-Encoding: chunked¶Transfer-Encoding: identity¶¶0¶¶", "2 Transfer-Encoding"},
	{"GET / HTTP/1.1¶Host: db¶Transfer-Encoding : chunked¶¶0¶¶", "before a header's colon"},
	{"GET / HTTP/1.1¶Host: db¶Transfer-Encoding\t: chunked¶¶0¶¶", "before a header's colon"},
	{"GET / HTTP/1.1¶Host: db¶ Transfer-Encoding: chunked¶¶0¶¶", "folded"},
	{"GET / HTTP/1.1¶Host: db¶Transfer-Encoding:¶ chunked¶¶0¶¶", "folded"},
	{"GET / HTTP/1.1¶Host: db¶X-Forwarded-Client-Cert:¶ By=me¶¶", "folded"},
	{"GET / HTTP/1.1¶Host: db¶A: 1¶\tX-Forwarded-Client-Cert: By=me¶¶", "folded"},
	{"GET / HTTP/1.1¶ Host: db¶¶", "folded"},
	{"GET / HTTP/1.1\nHost: db\n\n", "bare line feed"},
	{"GET / HTTP/1.1¶Host: db\nX-Forwarded-Client-Cert: By=me¶¶", "bare line feed"},
	{"GET / HTTP/1.1¶Host: db¶\n", "bare line feed"},
	{"\nGET / HTTP/1.1¶Host: db¶¶", "bare line feed"},
	{"GET / HTTP/1.1¶Host: db\rX-Forwarded-Client-Cert: By=me¶¶", "carriage return"},
	{"GET / HTTP/1.1\rX-Forwarded-Client-Cert: By=me¶Host: db¶¶", "carriage return"},
	{"GET / HTTP/1.1¶Host: db¶A: \r\r\n¶", "carriage return"},
	{"GET / HTTP/1.1¶Host: db¶A\x00: 1¶¶", "no token"},
	{"GET / HTTP/1.1¶Host: db¶A: 1\x002¶¶", "control character"},
	{"GET /\x00 HTTP/1.1¶Host: db¶¶", "target"},
	{"GET /\tx HTTP/1.1¶Host: db¶¶", "target"},
	{"GET / HTTP/1.0¶Transfer-Encoding: chunked¶¶0¶¶", "HTTP/1.0"},
	{"GET / HTTP/1.1 ¶Host: db¶¶", "neither"},
	{"GET  / HTTP/1.1¶Host: db¶¶", "request line"},
	{"GET / / HTTP/1.1¶Host: db¶¶", "neither"},
	{" GET / HTTP/1.1¶Host: db¶¶", "request line"},
	{"G(T / HTTP/1.1¶Host: db¶¶", "request line"},
	{"GET /¶¶", "request line"},
	{"GET / HTTP/1.2¶Host: db¶¶", "neither"},
	{"GET / http/1.1¶Host: db¶¶", "neither"},
	{"PRI * HTTP/2.0¶¶SM¶¶", "HTTP/2"},
	{"CONNECT db:80 HTTP/1.1¶Host: db¶¶", "CONNECT"},
	{"GET / HTTP/1.1¶¶", "0 Host"},
	{"GET / HTTP/1.1¶Host: db¶Host: web¶¶", "2 Host"},
	{"GET / HTTP/1.1¶Host: db¶nonsense¶¶", "no colon"},
	{"GET / HTTP/1.1¶Host: db¶: 1¶¶", "no token"},
	{"GET / HTTP/1.1¶Host: db¶Connection: close, x-forwarded-client-cert¶¶", "next hop"},
	{"GET / HTTP/1.1¶Host: db¶Connection: Transfer-Encoding¶Transfer-Encoding: chunked¶¶0¶¶", "next hop"},
	{"GET / HTTP/1.1¶Host: db¶" + strings.Repeat("A: 1¶", maxFields) + "¶", "header lines"},
	{"GET / HTTP/1.1¶Host: db¶A: " + strings.Repeat("x", MaxHead) + "¶¶", "bytes of header"},
	{"GET / HTTP/1.1" + strings.Repeat("x", MaxHead), "bytes of header"},
}

func TestWhatIsRefused(t *testing.T) {
	for _, c := range refusals {
		for how, wrap := range map[string]func(io.Reader) io.Reader{"at once": asIs, "byte by byte": iotest.OneByteReader} {
			const before = "GET /before HTTP/1.1¶Host: db¶¶"
			got, err := all(lines(before+c.sent), nil, wrap)
			var r *Refusal
			if !errors.As(err, &r) || !strings.Contains(r.Why, c.why) {
				t.Errorf("%.120q, %s: %v, want it refused because of %q", c.sent, how, err, c.why)
			}
			if want := lines("GET /before HTTP/1.1¶Host: db¶^¶"); got != want {
				t.Errorf("%.120q, %s: the app got %q", c.sent, how, got)
			}
		}
	}
}

// In the middle of a body the app has a part already, and nothing after the fault.
func TestChunksThatAreRefused(t *testing.T) {
	const post = "POST / HTTP/1.1¶Host: db¶Transfer-Encoding: chunked¶¶"
	for _, c := range []struct{ sent, got, why string }{
		{"5¶hello!0¶¶", "5¶hello", "longer than its size"},
		{"5¶hello\r!¶0¶¶", "5¶hello", "carriage return"},
		{"5¶hello\n0¶¶", "5¶hello", "bare line feed"},
		{"5\nhello¶0¶¶", "", "bare line feed"},
		{"5;a\nb¶hello¶0¶¶", "", "bare line feed"},
		{"5;a\rb¶hello¶0¶¶", "", "carriage return"},
		{"5;a\x00b¶hello¶0¶¶", "", "control character"},
		{"0x5¶hello¶0¶¶", "", "no number"},
		{"-5¶hello¶0¶¶", "", "no number"},
		{" 5¶hello¶0¶¶", "", "no number"},
		{"5_0¶hello¶0¶¶", "", "no number"},
		{"@¶hello¶0¶¶", "", "no number"},
		{"¶hello¶0¶¶", "", "0 digits"},
		{"10000000000000005¶hello¶0¶¶", "", "17 digits"},
		{"5;" + strings.Repeat("x", maxChunkLine) + "¶hello¶0¶¶", "", "longer than"},
		{strings.Repeat("5", 2*maxChunkLine), "", "longer than"},
		{"0¶Content-Length: 5¶¶", "0¶", "in a trailer"},
		{"0¶Transfer_Encoding: chunked¶¶", "0¶", "in a trailer"},
		{"0¶A: 1\n¶", "0¶", "bare line feed"},
		{"0¶ A: 1¶¶", "0¶", "folded"},
		{"0¶" + strings.Repeat("A: 1¶", maxFields+1) + "¶", "0¶", "trailer lines"},
		{"0¶A: " + strings.Repeat("x", MaxHead), "0¶", "bytes of header"},
	} {
		got, err := all(lines(post+c.sent), nil, asIs)
		var r *Refusal
		if !errors.As(err, &r) || !strings.Contains(r.Why, c.why) {
			t.Errorf("%.60q: %v, want it refused because of %q", c.sent, err, c.why)
		}
		if want := lines("POST / HTTP/1.1¶Host: db¶Transfer-Encoding: chunked¶^¶" + c.got); got != want {
			t.Errorf("%.60q: the app got %q, want %q", c.sent, got, want)
		}
	}
}

// A client that ends in the middle has not ended in order.
func TestCutRequests(t *testing.T) {
	for _, c := range taken {
		sent := lines(c.sent)
		for i := range sent {
			got, err := all(sent[:i], NewUpgrade(strings.NewReader("")), asIs)
			if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%s, the first %d bytes: %v", c.what, i, err)
			}
			if err == nil && !strings.HasPrefix(lines(c.want), got) {
				t.Errorf("%s, the first %d bytes: the app got %q", c.what, i, got)
			}
		}
	}
}

// late fails in the middle of a header, as a read does whose time is over.
type late struct{ io.Reader }

func (l late) Read(p []byte) (int, error) {
	n, err := l.Reader.Read(p)
	if err == io.EOF {
		err = os.ErrDeadlineExceeded
	}
	return n, err
}

func TestSlowHeader(t *testing.T) {
	var told []bool
	r := NewReader(late{iotest.OneByteReader(strings.NewReader(lines("GET / HTTP/1.1¶Host: db¶¶GET / HT")))}, name, value, nil)
	r.Timed = func(on bool) { told = append(told, on) }
	_, err := io.ReadAll(r)
	var refusal *Refusal
	if !errors.As(err, &refusal) || !strings.Contains(refusal.Why, "in time") {
		t.Errorf("a header that does not end: %v", err)
	}
	if len(told) != 3 || !told[0] || told[1] || !told[2] {
		t.Errorf("the clock was told %v", told)
	}
}

// Only 101 to the first request makes the connection opaque; until then nothing
// that the client sends passes.
func TestUpgrades(t *testing.T) {
	const ask, asked = "GET /ws HTTP/1.1¶Host: db¶Connection: keep-alive, Upgrade¶Upgrade: WebSocket¶¶", "GET /ws HTTP/1.1¶Host: db¶Connection: keep-alive, Upgrade¶Upgrade: WebSocket¶^¶"
	const after = "GET /2 HTTP/1.1¶Host: db¶x-forwarded-client-cert: me¶¶"
	for _, c := range []struct {
		what, answer string
		switched     bool
	}{
		{"taken", "HTTP/1.1 101 Switching Protocols¶Upgrade: websocket¶¶", true},
		{"after others", "HTTP/1.1 103 Early Hints¶Link: x¶¶HTTP/1.1 100 Continue¶¶HTTP/1.1 101 Yes¶¶", true},
		{"with bare line feeds", "HTTP/1.1 103 Early\n\nHTTP/1.1 101 Yes\n\n", true},
		{"not taken", "HTTP/1.1 200 OK¶Content-Length: 0¶¶HTTP/1.1 101 Late¶¶", false},
		{"refused", "HTTP/1.1 426 Upgrade Required¶¶", false},
		{"101 in a header", "HTTP/1.1 103 Early¶HTTP/1.1 101 No¶¶HTTP/1.1 404 No¶¶", false},
		{"no HTTP", "+OK ready 101¶", false},
		{"short", "HTTP¶¶", false},
	} {
		up := NewUpgrade(iotest.OneByteReader(strings.NewReader(lines(c.answer))))
		passed := make(chan string, 1)
		go func() {
			b, _ := io.ReadAll(up)
			passed <- string(b)
		}()
		got, err := all(lines(ask+after), up, asIs)
		want := lines(asked + "GET /2 HTTP/1.1¶Host: db¶^¶")
		if c.switched {
			want = lines(asked) + lines(after)
		}
		if err != nil || got != want {
			t.Errorf("%s: the app got %q, %v; want %q", c.what, got, err, want)
		}
		if p := <-passed; p != lines(c.answer) {
			t.Errorf("%s: the client got %q", c.what, p)
		}
	}
	// The app goes away without an answer.
	up := NewUpgrade(strings.NewReader("HTTP/1.1 10"))
	go io.Copy(io.Discard, up)
	if got, _ := all(lines(ask+after), up, asIs); got != lines(asked) {
		t.Errorf("without an answer the app got %q", got)
	}
}

// The client sends it. Whatever passes is requests that net/http's parser sees as
// we do, each with the one header, ours; and no byte more.
func FuzzReader(f *testing.F) {
	for _, c := range taken {
		f.Add([]byte(lines(c.sent)))
	}
	for _, c := range refusals {
		f.Add([]byte(lines(c.sent)))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		got, err := all(string(sent), nil, asIs)
		again, err2 := all(string(sent), nil, iotest.OneByteReader)
		if again != got || (err == nil) != (err2 == nil) {
			t.Fatalf("byte by byte the app gets %q, %v; at once %q, %v", again, err2, got, err)
		}
		r := bufio.NewReaderSize(strings.NewReader(got), 1<<20)
		for {
			if _, perr := r.Peek(1); perr != nil {
				return
			}
			req, perr := http.ReadRequest(r)
			if perr != nil {
				if strings.Contains(perr.Error(), "malformed Host") || strings.Contains(perr.Error(), "invalid URI") || strings.Contains(perr.Error(), "parse ") || strings.Contains(perr.Error(), "unexpected EOF") {
					return // it has its own word on URIs, which frame nothing
				}
				t.Fatalf("of %q the app gets %q, which is no request: %v", sent, got, perr)
			}
			for header, values := range req.Header {
				if canonical(header) == canonical(name) && (len(values) != 1 || values[0] != value) {
					t.Fatalf("of %q the app gets %s: %q", sent, header, values)
				}
			}
			if req.Header.Get(name) != value {
				t.Fatalf("of %q the app gets a request without it: %q", sent, got)
			}
			if _, berr := io.Copy(io.Discard, req.Body); berr != nil {
				if err == nil {
					t.Fatalf("of %q, which was taken, the app gets a body that has no end: %v", sent, berr)
				}
				return
			}
			for header := range req.Trailer {
				if canonical(header) == canonical(name) && req.Trailer.Get(header) != "" {
					t.Fatalf("of %q the app gets the trailer %s", sent, header)
				}
			}
		}
	})
}

// What the app says is looked at, and passes as it is.
func FuzzUpgrade(f *testing.F) {
	f.Add([]byte("HTTP/1.1 103 x\r\n\r\nHTTP/1.1 101 y\r\n\r\nz"))
	f.Fuzz(func(t *testing.T, said []byte) {
		for _, wrap := range []func(io.Reader) io.Reader{asIs, iotest.OneByteReader} {
			up := NewUpgrade(wrap(bytes.NewReader(said)))
			if got, err := io.ReadAll(up); err != nil || !bytes.Equal(got, said) {
				t.Fatalf("%q became %q, %v", said, got, err)
			}
			up.wait()
		}
	})
}
