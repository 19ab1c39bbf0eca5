package server_test

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"tulle/policy/auth/uaa/uaatest"
	"tulle/policy/server"
)

// lines is a log that a test can wait for.
type lines struct {
	mu   sync.Mutex // guards what follows
	text strings.Builder
	more chan struct{} // closed at the next line; nil: nobody waits
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.more != nil {
		close(l.more)
		l.more = nil
	}
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// wait waits until the log holds the text.
func (l *lines) wait(t *testing.T, text string) {
	t.Helper()
	late := time.After(20 * time.Second)
	for {
		l.mu.Lock()
		have := l.text.String()
		if l.more == nil {
			l.more = make(chan struct{})
		}
		more := l.more
		l.mu.Unlock()
		if strings.Contains(have, text) {
			return
		}
		select {
		case <-more:
		case <-late:
			t.Fatalf("%q is not in the log:\n%s", text, have)
		}
	}
}

// TestCleanup deletes the policies of apps that are gone and names them, in the
// v1 shape, once each.
func TestCleanup(t *testing.T) {
	f := found(t)
	var all []string
	for i := range 120 { // more apps than one request asks for
		f.cc.App(fmt.Sprintf("app-%03d", i), "x", "blue")
		all = append(all, fmt.Sprintf("app-%03d web tcp 1 2", i))
	}
	f.expect("create", f.call("POST", policies, f.admin, body(all...)), 200, `{}`)
	none := `{"total_policies":0,"policies":[]}`
	f.expect("all apps are there", f.call("POST", cleanup, f.admin, ""), 200, none)
	f.cc.DeleteApp("app-007")
	f.cc.DeleteApp("app-119")
	f.expect("create for an app that never was", f.call("POST", policies, f.admin, body("web never udp 5 5")), 200, `{}`)
	f.expect("two are gone, one never was", f.call("POST", strings.Replace(cleanup, "v1", "v0", 1), f.admin, ""), 200,
		body("app-007 web tcp 1 2", "app-119 web tcp 1 2", "web never udp 5 5"))
	f.expect("again", f.call("POST", cleanup, f.admin, ""), 200, none)
	f.expect("not an admin", f.call("POST", cleanup, f.alice, ""), 403,
		`{"error": "provided scopes [network.write] do not include allowed scopes [network.admin]"}`)
	stats, err := f.store.Stats(t.Context())
	f.must(err)
	if stats.Policies != 118 {
		t.Errorf("%d policies are left, want 118", stats.Policies)
	}
	f.cc.DeleteApp("web")
	got := f.call("POST", cleanup, f.admin, "")
	if got.Status != 200 || !strings.HasPrefix(got.Body, `{"total_policies":118,`) {
		t.Errorf("without the app of all: %d %.100s", got.Status, got.Body)
	}
}

// TestCleanupWithoutTheAuthorityToSeeAllApps deletes nothing, though the list
// that the Cloud Controller gives is empty.
func TestCleanupWithoutTheAuthorityToSeeAllApps(t *testing.T) {
	var log lines
	f := found(t, func(o *server.Options) { o.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	p := body("web db tcp 80 80")
	f.expect("create", f.call("POST", policies, f.admin, p), 200, `{}`)
	f.uaa.GiveOwn(time.Hour, "uaa.resource")
	f.cc.Hide()
	f.expect("cleanup", f.call("POST", cleanup, f.admin, ""), 500, `{"error": "policies cleanup failed"}`)
	f.expect("list", f.call("GET", policies, f.admin, ""), 200, p)
	if !strings.Contains(log.String(), "of which none sees every app") {
		t.Errorf("the log does not say why:\n%s", log.String())
	}
}

func TestCleanupByTheClock(t *testing.T) {
	var log lines
	f := found(t, func(o *server.Options) {
		o.CleanupEvery = 20 * time.Millisecond
		o.Log = slog.New(slog.NewTextHandler(&log, nil))
	})
	f.expect("create", f.call("POST", policies, f.admin, body("web db tcp 80 80", "web cache tcp 80 80")), 200, `{}`)
	changed := f.store.Changed()
	f.cc.Be(uaatest.Failing)
	log.wait(t, "clean up policies")
	f.cc.DeleteApp("cache")
	f.cc.Release()
	select {
	case <-changed:
	case <-time.After(20 * time.Second):
		t.Fatal("the policy of an app that is gone stays")
	}
	f.expect("list", f.call("GET", policies, f.admin, ""), 200, body("web db tcp 80 80"))
}

// TestConcurrentCleanups tell each deleted policy once.
func TestConcurrentCleanups(t *testing.T) {
	f := found(t)
	for range 5 {
		f.expect("create", f.call("POST", policies, f.admin, body("gone web tcp 1 1")), 200, `{}`)
		answers := make([]answer, 4)
		var all sync.WaitGroup
		for i := range answers {
			all.Go(func() { answers[i] = f.call("POST", cleanup, f.admin, "") })
		}
		all.Wait()
		told := 0
		for _, a := range answers {
			if a.Status != 200 {
				t.Errorf("%d %s", a.Status, a.Body)
			}
			if a.Body == body("gone web tcp 1 1") {
				told++
			}
		}
		if told != 1 {
			t.Errorf("told %d times, want once", told)
		}
	}
}
