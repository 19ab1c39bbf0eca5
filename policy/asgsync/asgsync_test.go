package asgsync

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tulle/policy"
	"tulle/policy/ca"
	"tulle/policy/store"
	"tulle/policy/store/sqlite"
)

// cloud is a Cloud Controller: its API over TLS, by token, and its internal API
// over mutual TLS.
type cloud struct {
	t             *testing.T
	api, internal *httptest.Server
	client        *http.Client // for the internal API

	mu       sync.Mutex // guards what follows
	update   string     // the latest; "": not known
	pages    []string   // bodies, "HREF" standing for the next page's
	token    string     // the one that is good
	status   int        // of the API's listing; 0: 200
	requests []string
	listing  func() // called within each request for a page
}

func newCloud(t *testing.T) *cloud {
	c := &cloud{t: t, token: "good", update: "2026-01-02T03:04:05Z"}
	c.api = httptest.NewTLSServer(http.HandlerFunc(c.serveAPI))
	t.Cleanup(c.api.Close)

	dir := t.TempDir()
	roots, err := ca.CreateLegacy(dir) // any root of clients
	c.must(err)
	cred, err := roots.IssueLegacy("syncer", 0)
	c.must(err)
	pair, err := cred.TLS()
	c.must(err)
	c.internal = httptest.NewUnstartedServer(http.HandlerFunc(c.serveInternal))
	c.internal.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots.Pool()}
	c.internal.StartTLS()
	t.Cleanup(c.internal.Close)
	server := x509.NewCertPool()
	server.AddCert(c.internal.Certificate())
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: server, Certificates: []tls.Certificate{pair}}}
	t.Cleanup(transport.CloseIdleConnections)
	c.client = &http.Client{Transport: transport}
	return c
}

func (c *cloud) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *cloud) serveInternal(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests = append(c.requests, r.URL.Path)
	if r.Header.Get("Authorization") != "" || r.URL.Path != "/internal/v4/asg_latest_update" || c.update == "" {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	fmt.Fprintf(w, `{"last_update":%q}`, c.update)
}

func (c *cloud) serveAPI(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests = append(c.requests, r.URL.RequestURI())
	var n int
	if _, err := fmt.Sscanf(r.URL.RequestURI(), "/v3/security_groups?per_page=5000&page=%d", &n); err != nil || n < 1 || n > len(c.pages) {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	if r.Header.Get("Authorization") != "bearer "+c.token {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if c.listing != nil {
		c.listing()
	}
	if c.status != 0 {
		w.WriteHeader(c.status)
	}
	fmt.Fprint(w, strings.ReplaceAll(c.pages[n-1], "HREF", fmt.Sprintf("%s/v3/security_groups?page=%d", c.api.URL, n+1)))
}

// change changes what the Cloud Controller says, and forgets the requests.
func (c *cloud) change(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	c.requests = nil
}

func (c *cloud) asked() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.requests)
}

// tokens gives "stale" until it was told to forget it.
type tokens struct {
	mu      sync.Mutex // guards current
	current string
	err     error
}

func (k *tokens) Token(context.Context) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.current, k.err
}

func (k *tokens) Forget(token string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.current == token {
		k.current = "good"
	}
}

func newSyncer(c *cloud, groups Groups, change ...func(*Options)) *Syncer {
	o := Options{URL: c.api.URL + "/", HTTP: c.api.Client(), InternalURL: c.internal.URL, Internal: c.client,
		Tokens: &tokens{current: "good"}, Groups: groups}
	for _, f := range change {
		f(&o)
	}
	return New(o)
}

func openStore(t *testing.T) store.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "policy.db"), sqlite.Options{
		Lease: store.LeaseConfig{Network: netip.MustParsePrefix("10.255.0.0/16"), Bits: 24, Lifetime: time.Hour}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func stored(t *testing.T, s store.Store) []string {
	t.Helper()
	gs, _, err := s.SecurityGroups(t.Context(), store.GroupFilter{All: true})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, g := range gs {
		names = append(names, g.Name)
	}
	return names
}

const (
	dbNet = `{"guid":"g1","name":"db-net","globally_enabled":{"running":true,"staging":false},
		"rules":[{"protocol":"tcp","destination":"10.20.0.0/24","ports":"5432,6000-6010","log":true,"description":"db"},
		{"protocol":"icmp","destination":"0.0.0.0/0","type":8,"code":-1},{"protocol":"all","destination":"10.1.0.0-10.1.0.9","ports":null,"type":null}],
		"relationships":{"running_spaces":{"data":[{"guid":"s1"},{"guid":"s2"}]},"staging_spaces":{"data":[]}},"links":{}}`
	dns      = `{"guid":"g2","name":"dns","globally_enabled":{"running":false,"staging":true},"rules":[],"relationships":{"staging_spaces":{"data":[{"guid":"s3"}]}}}`
	last     = `{"pagination":{"total_pages":1,"next":null},"resources":[%s]}`
	morePage = `{"pagination":{"total_pages":2,"next":{"href":"HREF"}},"resources":[%s]}`

	updatePath = "/internal/v4/asg_latest_update"
	listPath   = "/v3/security_groups?per_page=5000&page=1"
)

func TestSyncStoresWhatTheCloudControllerHas(t *testing.T) {
	c, s := newCloud(t), openStore(t)
	if err := s.PutSecurityGroup(t.Context(), policy.SecurityGroup{GUID: "by-hand", Name: "by-hand"}); err != nil {
		t.Fatal(err)
	}
	c.pages = []string{fmt.Sprintf(morePage, dbNet), fmt.Sprintf(last, dns)}
	y := newSyncer(c, s)
	c.must(y.Sync(t.Context()))
	gs, _, err := s.SecurityGroups(t.Context(), store.GroupFilter{All: true})
	c.must(err)
	want := []policy.SecurityGroup{
		{GUID: "g1", Name: "db-net", RunningDefault: true, StagingSpaces: []string{}, RunningSpaces: []string{"s1", "s2"}, Rules: []policy.SecurityRule{
			{Protocol: "tcp", Destination: "10.20.0.0/24", Ports: "5432,6000-6010", Log: true, Description: "db"},
			{Protocol: "icmp", Destination: "0.0.0.0/0", Type: 8, Code: -1}, {Protocol: "all", Destination: "10.1.0.0-10.1.0.9"}}},
		{GUID: "g2", Name: "dns", StagingDefault: true, StagingSpaces: []string{"s3"}, RunningSpaces: []string{}, Rules: []policy.SecurityRule{}},
	}
	if diff := cmp.Diff(want, gs); diff != "" {
		t.Errorf("stored (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{updatePath, listPath, updatePath, strings.Replace(listPath, "page=1", "page=2", 1), updatePath}, c.asked()); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

func TestSyncListsOnlyAfterAnUpdate(t *testing.T) {
	c, s := newCloud(t), openStore(t)
	c.pages = []string{fmt.Sprintf(last, dbNet)}
	now := time.Unix(1_800_000_000, 0)
	y := newSyncer(c, s, func(o *Options) { o.Now = func() time.Time { return now } })
	c.must(y.Sync(t.Context()))
	for _, tt := range []struct {
		name, update string
		lists        bool
	}{
		{"the same, which may be another's too", "2026-01-02T03:04:05Z", true},
		{"the same", "2026-01-02T03:04:05Z", false},
		{"the same, said otherwise", "2026-01-02T04:04:05+01:00", false},
		{"older", "2026-01-01T00:00:00Z", false},
		{"newer", "2026-01-02T03:04:05.5Z", true},
		{"not known", "", true},
		{"not known, again", "", true},
		{"known again", "2026-01-02T03:04:06Z", true},
		{"known still", "2026-01-02T03:04:06Z", true},
		{"known since long", "2026-01-02T03:04:06Z", false},
	} {
		now = now.Add(time.Minute)
		c.change(func() { c.update = tt.update })
		c.must(y.Sync(t.Context()))
		if got := slices.Contains(c.asked(), listPath); got != tt.lists {
			t.Errorf("%s: listed %v, want %v", tt.name, got, tt.lists)
		}
	}
}

// Of two changes in one second, which have the same time, the second is not missed
// when the groups are listed between them.
func TestUpdatesOfTheSameSecond(t *testing.T) {
	c, s := newCloud(t), openStore(t)
	now := time.Unix(1_800_000_000, 0)
	y := newSyncer(c, s, func(o *Options) { o.Now = func() time.Time { return now } })
	c.pages = []string{fmt.Sprintf(last, dbNet)}
	c.must(y.Sync(t.Context()))
	c.change(func() { c.pages = []string{fmt.Sprintf(last, dns)} })
	now = now.Add(DefaultInterval)
	c.must(y.Sync(t.Context()))
	if got := stored(t, s); !slices.Equal(got, []string{"dns"}) {
		t.Errorf("stored %v", got)
	}
}

// A listing that changes while it is read is read again; nothing of it is stored.
func TestUnstableListing(t *testing.T) {
	c, s := newCloud(t), openStore(t)
	c.pages = []string{fmt.Sprintf(last, dbNet)}
	n := 0
	c.listing = func() {
		n++
		c.update = fmt.Sprintf("2026-01-02T03:04:%02dZ", n)
	}
	now := time.Unix(1_800_000_000, 0)
	y := newSyncer(c, s, func(o *Options) { o.Now = func() time.Time { return now } })
	if err := y.Sync(t.Context()); !errors.Is(err, ErrUnstable) || n != 3 {
		t.Errorf("always changing: %v after %d attempts, want %v after 3", err, n, ErrUnstable)
	}
	if got := stored(t, s); got != nil {
		t.Errorf("stored %v", got)
	}
	c.change(func() {
		calm := c.listing
		c.listing = func() {
			if n < 5 {
				calm()
			}
		}
	})
	c.must(y.Sync(t.Context())) // at the third attempt
	if got := stored(t, s); !slices.Equal(got, []string{"db-net"}) {
		t.Errorf("stored %v", got)
	}
	now = now.Add(time.Minute)
	c.must(y.Sync(t.Context()))
	c.change(func() {})
	c.must(y.Sync(t.Context()))
	if got := c.asked(); len(got) != 1 {
		t.Errorf("after the stable listing: %v", got)
	}
}

func TestFailuresLeaveWhatIsStored(t *testing.T) {
	c, s := newCloud(t), openStore(t)
	c.pages = []string{fmt.Sprintf(last, dbNet)}
	c.must(newSyncer(c, s).Sync(t.Context()))
	for _, tt := range []struct {
		name  string
		spoil func()
		want  string
	}{
		{"the listing fails", func() { c.status = 503 }, "answers " + listPath + " with 503"},
		{"no JSON", func() { c.pages = []string{"<html>"} }, "answer to " + listPath + ": invalid character"},
		{"a group without a GUID", func() { c.pages = []string{fmt.Sprintf(last, `{"name":"x"}`)} }, `group "" is without a GUID`},
		{"a group twice", func() { c.pages = []string{fmt.Sprintf(last, dns+","+dns)} }, `group "g2" is without a GUID or there twice`},
		{"the second page is gone", func() { c.pages = []string{fmt.Sprintf(morePage, dns)} }, "page=2 with 404"},
		{"a time that is none", func() { c.update = "yesterday" }, "answer to " + updatePath},
		{"the token is refused twice", func() { c.token = "another" }, "with 401"},
	} {
		c.change(func() {
			c.pages, c.status, c.token, c.update = []string{fmt.Sprintf(last, dns)}, 0, "good", "2027-01-02T03:04:05Z"
			tt.spoil()
		})
		if err := newSyncer(c, s).Sync(t.Context()); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
		if got := stored(t, s); !slices.Equal(got, []string{"db-net"}) {
			t.Errorf("%s: stored %v", tt.name, got)
		}
	}
	c.change(func() { c.token, c.update = "good", "2027-01-02T03:04:05Z" })
	broken := errors.New("the UAA is away")
	err := newSyncer(c, s, func(o *Options) { o.Tokens = &tokens{err: broken} }).Sync(t.Context())
	if !errors.Is(err, broken) {
		t.Errorf("no token: %v, want %v", err, broken)
	}
}

func TestARefusedTokenIsReplacedOnce(t *testing.T) {
	c, s := newCloud(t), openStore(t)
	c.pages = []string{fmt.Sprintf(last, dbNet)}
	c.must(newSyncer(c, s, func(o *Options) { o.Tokens = &tokens{current: "stale"} }).Sync(t.Context()))
	if diff := cmp.Diff([]string{updatePath, listPath, listPath, updatePath}, c.asked()); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

// failing is a store that fails until it is told otherwise.
type failing struct {
	mu   sync.Mutex // guards err
	err  error
	done chan int // the length of each list that was stored
}

func (f *failing) ReplaceSecurityGroups(_ context.Context, gs []policy.SecurityGroup) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.done <- len(gs)
	}
	return f.err
}

// levels sends the level of each record.
type levels struct {
	slog.Handler
	ch chan slog.Level
}

func (l levels) Enabled(context.Context, slog.Level) bool { return true }

func (l levels) Handle(_ context.Context, r slog.Record) error {
	l.ch <- r.Level
	return nil
}

// TestRunGoesOn: a failure is a warning, past the deadline an error, and ends
// with the first success.
func TestRunGoesOn(t *testing.T) {
	c := newCloud(t)
	c.pages = []string{fmt.Sprintf(last, dbNet)}
	var mu sync.Mutex // guards now
	now := time.Unix(1_800_000_000, 0)
	f := &failing{err: errors.New("disk full"), done: make(chan int, 1)}
	log := levels{slog.DiscardHandler, make(chan slog.Level)}
	y := newSyncer(c, f, func(o *Options) {
		o.Interval, o.Log = time.Millisecond, slog.New(log)
		o.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- y.Run(ctx) }()
	for range 3 {
		if got := <-log.ch; got != slog.LevelWarn {
			t.Errorf("logged as %s, want %s", got, slog.LevelWarn)
		}
	}
	mu.Lock()
	now = now.Add(DefaultRetryDeadline + time.Second)
	mu.Unlock()
	<-log.ch // may have been judged before
	if got := <-log.ch; got != slog.LevelError {
		t.Errorf("past the deadline logged as %s, want %s", got, slog.LevelError)
	}
	f.mu.Lock()
	f.err = nil
	f.mu.Unlock()
	for level := slog.LevelError; level == slog.LevelError; { // one may be under way
		level = <-log.ch
	}
	if got := <-f.done; got != 1 {
		t.Errorf("stored %d groups, want 1", got)
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("ended with %v", err)
	}
}

// FuzzPage: the Cloud Controller is trusted to speak the truth, not to be well
// formed. Any page is read or refused, and what is read can be stored.
func FuzzPage(f *testing.F) {
	for _, body := range []string{fmt.Sprintf(last, dbNet+","+dns), fmt.Sprintf(morePage, ""), `{"resources":[null]}`, `null`, `{`} {
		f.Add([]byte(body))
	}
	var current atomic.Pointer[[]byte]
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v3/") {
			w.Write(*current.Load())
			return
		}
		w.WriteHeader(http.StatusNotFound)
	}))
	f.Cleanup(server.Close)
	f.Fuzz(func(t *testing.T, body []byte) {
		current.Store(&body)
		groups := &failing{done: make(chan int, 1)}
		y := New(Options{URL: server.URL, InternalURL: server.URL, Tokens: &tokens{}, Groups: groups, HTTP: server.Client(), Internal: server.Client()})
		err := y.Sync(t.Context())
		select {
		case <-groups.done:
			if err != nil {
				t.Errorf("stored, yet %v", err)
			}
		default:
			if err == nil {
				t.Error("no error, and nothing stored")
			}
		}
	})
}
