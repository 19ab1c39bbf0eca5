package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestReport(t *testing.T) {
	var out strings.Builder
	r := newReport(&out, false)
	r.title("%d. A step", 1)
	r.check(true, 1500*time.Microsecond, "frontend/0 -> backend/0 tcp 8080", "connected")
	r.check(false, 0, "backend/0 -> frontend/0 tcp 8080", "connected")
	r.fail("another", errors.New("broken"))
	r.note("and so on")
	r.command("tulle apps")
	r.summary(2 * time.Second)
	got := strings.Split(out.String(), "\n")
	want := []string{
		"",
		"1. A step",
		"  frontend/0 -> backend/0 tcp 8080                         connected                                       1.5 ms  ok",
		"  backend/0 -> frontend/0 tcp 8080                         connected                                            -  FAILED",
		"  another                                                  broken                                               -  FAILED",
		"    and so on",
		"  tulle apps",
		"",
		"2 of 3 checks FAILED:",
		"  backend/0 -> frontend/0 tcp 8080: connected",
		"  another: broken",
		"",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
	if r.checks != 3 || len(r.failed) != 2 {
		t.Errorf("%d checks, failed %v", r.checks, r.failed)
	}
}

// A program that reads the demo gets one object a line, and the sum at the end.
func TestReportAsJSON(t *testing.T) {
	var out strings.Builder
	r := newReport(&out, true)
	r.title("%d. A step", 1)
	r.check(true, 1500*time.Microsecond, "a -> b", "connected")
	r.note("and so on")
	r.title("2. Another")
	r.command("tulle apps")
	r.fail("c", errors.New("broken"))
	r.summary(2 * time.Second)
	want := `{"step":"1. A step","asked":"a -> b","got":"connected","seconds":0.0015,"ok":true}
{"step":"1. A step","note":"and so on"}
{"step":"2. Another","note":"tulle apps"}
{"step":"2. Another","asked":"c","got":"broken","ok":false}
{"checks":2,"failed":["c: broken"],"seconds":2}
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
	var fine strings.Builder
	newReport(&fine, true).summary(time.Second)
	if got := fine.String(); got != "{\"checks\":0,\"failed\":[],\"seconds\":1}\n" {
		t.Errorf("nothing failed: %s", got)
	}
}

// How a demo ends: what is not as it should be is a failure, and an interrupt says
// whether anything is left.
func TestVerdict(t *testing.T) {
	for _, c := range []struct {
		name   string
		failed bool
		err    error
		away   bool
		want   error
	}{
		{"all is well", false, nil, true, nil},
		{"one check failed", true, nil, true, ErrFailed},
		{"a world that does not start", false, fs.ErrPermission, true, fs.ErrPermission},
		{"interrupted", false, fmt.Errorf("wait for cell-1 to be ready: %w", context.Canceled), true, ErrInterrupted},
		{"interrupted, something is left", true, context.Canceled, false, ErrLeft},
	} {
		r := newReport(io.Discard, false)
		r.check(!c.failed, 0, "a -> b", "connected")
		if got := r.verdict(c.err, c.away, time.Second); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0:                         "-",
		870 * time.Nanosecond:     "at once",
		42 * time.Microsecond:     "42 µs",
		1234 * time.Microsecond:   "1.2 ms",
		123456 * time.Microsecond: "123 ms",
		2340 * time.Millisecond:   "2.34 s",
	} {
		if got := duration(d); got != want {
			t.Errorf("%d ns: %q, want %q", d, got, want)
		}
	}
}

func TestSamples(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/metrics" {
			http.NotFound(w, r)
			return
		}
		w.Write([]byte("# HELP a_total x\n# TYPE a_total counter\na_total{reason=\"no policy\",way=\"in\"} 3\na_total{reason=\"short\",way=\"in\"} 4\nb 1e+06\n"))
	}))
	defer server.Close()
	s, err := ReadMetrics(t.Context(), strings.TrimPrefix(server.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	want := Samples{`a_total{reason="no policy",way="in"}`: 3, `a_total{reason="short",way="in"}`: 4, "b": 1e6}
	if diff := cmp.Diff(want, s); diff != "" {
		t.Errorf("samples (-want +got):\n%s", diff)
	}
	if got := s.Sum("a_total", `way="in"`); got != 7 {
		t.Errorf("sum %g, want 7", got)
	}
	if got := s.Sum("a_total", `way="in"`, `reason="short"`); got != 4 {
		t.Errorf("sum of the short ones %g, want 4", got)
	}
	if got := s.Moved(Samples{"b": 1e6, `a_total{reason="short",way="in"}`: 1}); !cmp.Equal(got, []string{`a_total{reason="no policy",way="in"}`, `a_total{reason="short",way="in"}`}) {
		t.Errorf("moved: %q", got)
	}
}
