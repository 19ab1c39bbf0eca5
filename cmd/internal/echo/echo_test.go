package echo

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const patience = 10 * time.Second

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// container is the command as it runs in a container, with free ports: what
// listens where, and the client that drives it.
type container struct {
	*Client
	http, udp string
}

func startContainer(t *testing.T) *container {
	t.Helper()
	c := &container{http: freeTCP(t), udp: freeUDP(t)}
	inRead, inWrite := io.Pipe()
	outRead, outWrite := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := run(context.Background(), "web/0", []string{c.http}, []string{c.udp}, true, inRead, outWrite)
		outWrite.Close()
		ended <- err
	}()
	c.Client = NewClient(inWrite, outRead)
	t.Cleanup(func() {
		c.Close()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := c.Gone(testContext(t)); err != nil {
			t.Error(err)
		}
	})
	ready, err := c.Ready(testContext(t))
	if err != nil || ready.Name != "web/0" || ready.Self == nil || !strings.HasPrefix(ready.NetNS, "net:[") {
		t.Fatalf("ready: %+v, %v", ready, err)
	}
	return c
}

func freeTCP(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func freeUDP(t *testing.T) string {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().String()
}

func TestOneAttempt(t *testing.T) {
	c := startContainer(t)
	for _, row := range []struct {
		name string
		req  Request
		want Outcome
	}{
		{"connected", Request{Op: OpDial, Address: c.http}, OK},
		{"refused", Request{Op: OpDial, Address: freeTCP(t)}, Refused},
		{"who", Request{Op: OpGet, Address: c.http}, OK},
		{"echo", Request{Op: OpUDP, Address: c.udp, Bytes: 1400}, OK},
		{"no echo", Request{Op: OpUDP, Address: freeUDP(t)}, Refused},
		{"download", Request{Op: OpDownload, Address: c.http, Bytes: 3*blockLen + 5}, OK},
		{"empty download", Request{Op: OpDownload, Address: c.http}, OK},
		{"no such thing", Request{Op: "sing"}, Failed},
	} {
		e, err := c.Do(testContext(t), row.req)
		if err != nil || e.Outcome != row.want {
			t.Errorf("%s: %s %s (%v), want %s", row.name, e.Outcome, e.Error, err, row.want)
		}
		if row.req.Op == OpDownload && e.Bytes != row.req.Bytes {
			t.Errorf("%s: %d bytes, want %d", row.name, e.Bytes, row.req.Bytes)
		}
		if row.name == "who" && !strings.Contains(e.Text, `"name":"web/0"`) {
			t.Errorf("it says %q", e.Text)
		}
	}
}

// A repeated attempt ends with the one that comes to what was waited for.
func TestUntil(t *testing.T) {
	c := startContainer(t)
	later := freeTCP(t)
	call, err := c.Start(Request{Op: OpDial, Address: later, Until: OK, Patience: patience})
	if err != nil {
		t.Fatal(err)
	}
	refused, err := c.Do(testContext(t), Request{Op: OpDial, Address: later})
	if err != nil || refused.Outcome != Refused {
		t.Fatalf("before anyone listens: %+v, %v", refused, err)
	}
	l, err := net.Listen("tcp", later)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	e, err := call.Done(testContext(t))
	if err != nil || e.Outcome != OK {
		t.Errorf("got %+v, %v; want ok", e, err)
	}
	e, err = c.Do(testContext(t), Request{Op: OpDial, Address: freeTCP(t), Until: OK, Patience: 20 * time.Millisecond})
	if err != nil || e.Outcome != Refused || e.Attempts < 2 {
		t.Errorf("out of patience: %+v, %v; want refused after more than one attempt", e, err)
	}
}

// Both ends of a connection tell its end: in order, or cut.
func TestHold(t *testing.T) {
	server, client := startContainer(t), startContainer(t)
	hold := func() (*Call, Event) {
		t.Helper()
		call, err := client.Start(Request{Op: OpHold, Address: server.http})
		if err != nil {
			t.Fatal(err)
		}
		begun, err := call.Wait(testContext(t), EventBegun)
		if err != nil {
			t.Fatal(err)
		}
		return call, begun
	}
	call, begun := hold()
	if err := call.Stop(); err != nil {
		t.Fatal(err)
	}
	if e, err := call.Done(testContext(t)); err != nil || e.Outcome != Stopped {
		t.Errorf("the client's end: %+v, %v; want stopped", e, err)
	}
	served := func(local string) Event {
		t.Helper()
		e, err := server.Served(testContext(t), func(e Event) bool {
			return e.Kind == EventServed && e.Peer == local && e.Path == "/hold"
		})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	if e := served(begun.Local); e.Outcome != Closed {
		t.Errorf("the server's end: %+v; want closed", e)
	}
	if _, err := server.Served(testContext(t), func(e Event) bool { return e.Kind == EventServing && e.Peer == begun.Local }); err != nil {
		t.Errorf("the server's beginning: %v", err)
	}
}

// What the far end resets is told as reset, by a server that sends and by one
// that is silent.
func TestResetIsTold(t *testing.T) {
	server := startContainer(t)
	for _, path := range []string{"/hold", "/download?bytes=1000000000"} {
		conn, err := net.Dial("tcp", server.http)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 12)); err != nil {
			t.Fatal(err)
		}
		local := conn.LocalAddr().String()
		conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
		e, err := server.Served(testContext(t), func(e Event) bool { return e.Kind == EventServed && e.Peer == local })
		if err != nil || e.Outcome != Reset {
			t.Errorf("%s: %+v, %v; want reset", path, e, err)
		}
	}
}

func TestDownloadMarksAndStops(t *testing.T) {
	c := startContainer(t)
	call, err := c.Start(Request{Op: OpDownload, Address: c.http, Bytes: 1 << 40, Rate: 64 << 20, Mark: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	mark, err := call.Wait(testContext(t), EventMark)
	if err != nil || mark.Bytes < 1<<20 || mark.Bytes > 32<<20 {
		t.Errorf("mark: %+v, %v", mark, err)
	}
	if err := call.Stop(); err != nil {
		t.Fatal(err)
	}
	if e, err := call.Done(testContext(t)); err != nil || e.Outcome != Stopped || e.Bytes < mark.Bytes {
		t.Errorf("stopped: %+v, %v", e, err)
	}
	limited, err := c.Do(testContext(t), Request{Op: OpDownload, Address: c.http, Bytes: 1 << 40, Limit: 30 * time.Millisecond})
	if err != nil || limited.Outcome != Stopped || limited.Bytes == 0 {
		t.Errorf("limited: %+v, %v", limited, err)
	}
}

// One wrong byte anywhere, a lost piece or a repeated one is seen.
func TestVerifySeesEveryDifference(t *testing.T) {
	const n = 2*blockLen + 100
	var right strings.Builder
	if _, err := send(&right, n, 0, nil); err != nil {
		t.Fatal(err)
	}
	s := right.String()
	ignore := func(int64) {}
	if got, err := verify(strings.NewReader(s), n, ignore); got != n || err != nil {
		t.Fatalf("the stream itself: %d, %v", got, err)
	}
	if got, err := verify(strings.NewReader(s[:n-1]), n, ignore); got != n-1 || !errors.Is(err, io.EOF) {
		t.Errorf("one byte short: %d, %v", got, err)
	}
	for name, wrong := range map[string]string{
		"first byte":    "x" + s[1:],
		"last byte":     s[:n-1] + "x",
		"lost block":    s[blockLen:] + s[:blockLen],
		"swapped":       s[blockLen:2*blockLen] + s[:blockLen] + s[2*blockLen:],
		"lost a byte":   s[:5000] + s[5001:] + "x",
		"repeated some": s[:5000] + s[4000:n-1000],
	} {
		if _, err := verify(strings.NewReader(wrong), n, ignore); !errors.Is(err, errCorrupt) {
			t.Errorf("%s: %v, want %v", name, err, errCorrupt)
		}
	}
}

func TestDescribe(t *testing.T) {
	e, err := startContainer(t).Do(testContext(t), Request{Op: OpDescribe})
	if err != nil || e.Outcome != OK || e.Self == nil {
		t.Fatalf("%+v, %v", e, err)
	}
	if e.UID != os.Getuid() || len(e.CapEff) != 16 || e.NNP == "" || e.NetNS == "" {
		t.Errorf("it sees %+v", e.Self)
	}
}

func TestPortRanges(t *testing.T) {
	for _, row := range []struct {
		in   []string
		want []string
	}{
		{nil, nil},
		{[]string{"9000"}, []string{":9000"}},
		{[]string{"9000-9002", "127.0.0.1:53"}, []string{":9000", ":9001", ":9002", "127.0.0.1:53"}},
		{[]string{"[::1]:1-2"}, []string{"[::1]:1", "[::1]:2"}},
	} {
		got, err := expand(row.in)
		if err != nil || !cmp.Equal(got, row.want) {
			t.Errorf("%v: %v, %v; want %v", row.in, got, err, row.want)
		}
	}
	for _, bad := range []string{"", "x", "2-1", "1-65536", "1-2000", "-", "1-"} {
		if got, err := expand([]string{bad}); err == nil {
			t.Errorf("%q: %v, want an error", bad, got)
		}
	}
}
