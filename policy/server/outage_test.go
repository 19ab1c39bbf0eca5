package server_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/server"
	"tulle/policy/store"
	"tulle/policy/store/pgtest"
	"tulle/policy/store/postgres"
	"tulle/policy/store/sqlite"
	"tulle/policy/store/sqlstore"
)

// outage is a server with a legacy root and a cell, whose database is the test's
// to take away.
type outage struct {
	*legacyRig
	cell, agent *http.Client
	lease       string // path of the cell's
}

func newOutage(t *testing.T, s store.Store, log io.Writer) *outage {
	t.Helper()
	o := &outage{legacyRig: newLegacyRig(t, func(o *server.Options) {
		o.Store = s
		o.InternalOptions.Refresh = 10 * time.Millisecond
		o.Log = slog.New(slog.NewTextHandler(log, nil))
	})}
	cred, err := o.roots.Cells.IssueCell("cell-1", nil, 0)
	o.must(err)
	o.cell, o.agent = o.client(cred, "127.0.0.1"), o.daemon("127.0.0.11")
	o.lease = o.internal + cellPath + "cell-1/"
	return o
}

// fill stores something of everything that is read, and waits until the server
// remembers it.
func (o *outage) fill() {
	o.t.Helper()
	ctx := o.t.Context()
	l, err := o.options.Store.Lease(ctx, "cell-1", api.LeaseRequest{Underlay: netip.MustParseAddr("192.0.2.1"), Port: 4789, Mode: api.ModeVXLAN})
	o.must(err)
	o.must(o.options.Store.PutSecurityGroup(ctx, policy.SecurityGroup{GUID: "g", Name: "g", RunningDefault: true}))
	o.must(o.options.Store.PutSecurityGroup(ctx, policy.SecurityGroup{GUID: "h", Name: "h", RunningSpaces: []string{"s"}}))
	_, err = o.options.Store.Tag(ctx, "INGRESS_ROUTER", "router")
	o.must(err)
	_, err = o.options.Store.AddRoutes(ctx, []policy.Route{{Name: "web.apps.internal", App: "web"}, {Name: "db.apps.internal", App: "db"}}, nil)
	o.must(err)
	o.expect("create", o.call("POST", policies, o.admin, body("web db tcp 80 90", "web web udp 53 53", "db web tcp 1 1")), 200, "{}")
	set, err := o.options.Store.SetEndpoints(ctx, "cell-1", api.EndpointsRequest{Generation: l.Generation, Sequence: 1,
		Endpoints: []api.EndpointRegistration{{Container: "k", Address: l.Subnet.Addr().Next(), App: api.AppRef{Name: "web"}, Incarnation: 1}}})
	o.must(err)
	o.remembers(1, set.Revision)
}

// remembers waits until the server does.
func (o *outage) remembers(apps int, at api.Revision) {
	o.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if known, revision := server.Remembers(o.server); len(known) == apps && revision >= at {
			return
		}
		if time.Now().After(deadline) {
			o.t.Fatal("the server never remembers what was stored")
		}
	}
}

// reads asks for everything that can be read, and gives the answers.
func (o *outage) reads() map[string]string {
	o.t.Helper()
	answers := map[string]string{}
	for _, path := range []string{policies, policies + "?id=db", policies + "?source_id=web&dest_id=db,web", policies + "?dest_id=web",
		policies + "?id=", "/networking/v0/external/policies", "/networking/v1/external/tags", "/networking/v1/external/whoami",
		"/v1/apps", "/v1/cells", "/v1/endpoints", "/v1/routes", "/v1/routes?name=web.apps.internal", "/v1/routes/domains", "/v1/security-groups", "/v1/security-groups/h", "/v1/security-groups/none"} {
		got := o.call("GET", path, o.admin, "")
		answers[path] = fmt.Sprint(got.Status, " ", got.Body)
	}
	for _, path := range []string{"policies", "policies?id=db,space", "policies_last_updated", "security_groups", "security_groups?space_guids=s&per_page=5000", "security_groups_last_updated"} {
		status, text := o.do(o.agent, "GET", o.internal+"/networking/v1/internal/"+path, "")
		answers[path] = fmt.Sprint(status, " ", text)
	}
	status, text := o.do(o.agent, "GET", o.silk+"/leases", "")
	answers["leases"] = fmt.Sprint(status, " ", text)
	return answers
}

// same compares the answers, but for when the cell was last heard of.
func (o *outage) same(what string, before, now map[string]string) {
	o.t.Helper()
	for path, want := range before {
		if got := now[path]; got != want {
			o.t.Errorf("%s, GET %s: %s\nwant %s", what, path, got, want)
		}
	}
}

// refused sees that nothing is stored, in the original's words where there are any.
func (o *outage) refused(what, why string) {
	o.t.Helper()
	for _, c := range []struct{ method, path, body, want string }{
		{"POST", policies, body("web db tcp 1 1"), "database create failed"},
		{"POST", "/networking/v0/external/policies/delete", `{"policies":[{"source":{"id":"web"},"destination":{"id":"web","protocol":"udp","port":53}}]}`, "database delete failed"},
		{"POST", "/v1/policies", body("web db tcp 1 1"), "database create failed"},
		{"PUT", "/v1/security-groups/g", `{"name":"x","rules":[]}`, why},
	} {
		o.expect(what+", "+c.path, o.call(c.method, c.path, o.admin, c.body), 503, `{"error": "`+c.want+`"}`)
	}
	status, text := o.do(o.cell, "PUT", o.lease+"lease", `{"underlay":"192.0.2.1","port":4789,"mode":"vxlan"}`)
	if status != 503 || text != `{"error": "`+why+`"}` {
		o.t.Errorf("%s, the cell's lease: %d %s", what, status, text)
	}
	status, text = o.do(o.agent, "PUT", o.internal+"/networking/v1/internal/tags", `{"id":"another","type":"router"}`)
	if status != 503 || text != `{"error": "database create failed"}` {
		o.t.Errorf("%s, a tag: %d %s", what, status, text)
	}
	status, text = o.do(o.agent, "PUT", o.silk+"/leases/acquire", `{"underlay_ip":"127.0.0.11"}`)
	if status != 503 || text != `{"error": "adding lease entry: database write failed"}` {
		o.t.Errorf("%s, a silk lease: %d %s", what, status, text)
	}
}

// journal is a log that may be read while it is written.
type journal struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) has(t *testing.T, texts ...string) {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, text := range texts {
		if !strings.Contains(j.b.String(), text) {
			t.Errorf("the log does not say %q:\n%s", text, j.b.String())
		}
	}
}

func openPostgres(t *testing.T, url string) store.Store {
	t.Helper()
	s, err := postgres.Open(t.Context(), url, postgres.Options{Options: sqlstore.Options{
		Lease: store.LeaseConfig{Network: netip.MustParsePrefix("10.255.0.0/16"), Bits: 24, Lifetime: time.Hour}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// TestServerWithoutItsDatabase takes the database away under a server with a
// cell and brings it back: the cell keeps its stream, every read is answered as
// before, every write is refused in the original's words, and then all goes on
// by itself.
func TestServerWithoutItsDatabase(t *testing.T) {
	cluster := pgtest.Start(t)
	var log journal
	o := newOutage(t, openPostgres(t, cluster.Database()), &log)
	o.fill()
	// A cell that watches, by the same roots.
	s := &site{dir: o.pki, token: o.admin}
	a := s.cell(t, "a", strings.TrimPrefix(o.internal, "https://"), 1, "db")
	a.has(2)
	o.remembers(2, 0)
	before, connected := o.reads(), a.client.Status().Reconnects
	cluster.Stop()
	o.call("GET", policies, o.admin, "") // has the server look; it finds out
	delete(before, "/v1/cells")          // tells when each cell was last heard of
	o.same("while the database is away", before, o.reads())
	o.refused("while the database is away", store.ErrAway.Error())
	o.expect("health", o.call("GET", "/health", "", ""), 500, `{"error": "check database failed"}`)
	o.expect("audit", o.call("GET", "/v1/audit", o.admin, ""), 503, `{"error": "`+store.ErrAway.Error()+`"}`)
	o.expect("quota and access, from memory", o.call("POST", policies, o.write, body("web db tcp 1 1")), 503, `{"error": "database create failed"}`)
	begin := time.Now()
	o.reads()
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("reads without a database took %s", took)
	}
	cluster.Restart()
	for deadline := time.Now().Add(time.Minute); o.call("GET", "/health", "", "").Status != 200; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the server never finds its database again")
		}
	}
	o.same("after it", before, o.reads())
	o.expect("create", o.call("POST", policies, o.admin, body("web db tcp 82 82")), 200, "{}")
	a.has(3)
	if got := a.client.Status().Reconnects; got != connected {
		t.Errorf("the cell connected again %d times", got-connected)
	}
	log.has(t, "the database does not answer: reads go on from memory, writes are refused until it is back", "the database is back")
}

// silentRelay passes connections on to a unix socket until it is silenced: then it
// holds them, and takes more, and says nothing.
type silentRelay struct {
	net.Listener
	socket string
	silent chan struct{}
}

func relay(t *testing.T, socket string) *silentRelay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &silentRelay{Listener: l, socket: socket, silent: make(chan struct{})}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go r.pass(c)
		}
	}()
	return r
}

func (r *silentRelay) pass(c net.Conn) {
	defer c.Close()
	server, err := net.Dial("unix", r.socket)
	if err != nil {
		return
	}
	defer server.Close()
	copying := func(to, from net.Conn) {
		buf := make([]byte, 32<<10)
		for {
			n, err := from.Read(buf)
			select {
			case <-r.silent: // what it read is lost
				return
			default:
			}
			if err != nil {
				to.Close()
				return
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
	}
	done := make(chan struct{})
	go func() { defer close(done); copying(server, c) }()
	copying(c, server)
	select {
	case <-r.silent:
		<-time.After(time.Minute) // the client gives up before
	case <-done:
	}
}

// TestDatabaseThatSaysNothing has a network that swallows everything between the
// server and its database: a read that is under way is answered from memory
// after some seconds, those after it at once.
func TestDatabaseThatSaysNothing(t *testing.T) {
	cluster := pgtest.Start(t)
	database, err := url.Parse(cluster.Database())
	if err != nil {
		t.Fatal(err)
	}
	q := database.Query()
	r := relay(t, filepath.Join(q.Get("host"), ".s.PGSQL.5432"))
	q.Del("host")
	q.Set("sslmode", "disable")
	database.Host, database.RawQuery = r.Addr().String(), q.Encode()
	var log journal
	s, err := postgres.Open(t.Context(), database.String(), postgres.Options{Options: sqlstore.Options{
		Lease: store.LeaseConfig{Network: netip.MustParsePrefix("10.255.0.0/16"), Bits: 24, Lifetime: time.Hour}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	o := newOutage(t, s, &log)
	o.fill()
	before := o.reads()
	delete(before, "/v1/cells")
	close(r.silent)
	begin := time.Now()
	o.expect("a write under way", o.call("POST", policies, o.admin, body("web db tcp 1 1")), 503, `{"error": "database create failed"}`)
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("it took %s to find out", took)
	}
	begin = time.Now()
	o.same("while the database says nothing", before, o.reads())
	o.refused("while the database says nothing", store.ErrAway.Error())
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("once that is known, answers took %s", took)
	}
	log.has(t, "the database does not answer")
}

// TestDamageUnderARunningServer overwrites a SQLite file that is in use: reads go
// on from memory, writes are refused, and the log says what is wrong.
func TestDamageUnderARunningServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policy.db")
	s, err := sqlite.Open(t.Context(), path, sqlite.Options{Lease: store.LeaseConfig{
		Network: netip.MustParsePrefix("10.255.0.0/16"), Bits: 24, Lifetime: time.Hour}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	var log journal
	o := newOutage(t, s, &log)
	o.fill()
	// More than SQLite keeps in its cache.
	many := make([]policy.Policy, 4000)
	for i := range many {
		many[i] = policy.Policy{Source: policy.AppID(fmt.Sprint(i, strings.Repeat("-source", 100))), Destination: "web", Protocol: policy.TCP, Ports: policy.PortRange{Start: 1, End: 1}}
	}
	_, err = s.AddPolicies(t.Context(), many)
	o.must(err)
	before := o.reads()
	delete(before, "/v1/cells")
	for _, file := range []string{path, path + "-wal"} {
		info, err := os.Stat(file)
		o.must(err)
		f, err := os.OpenFile(file, os.O_WRONLY, 0)
		o.must(err)
		for at := int64(100); at < info.Size(); at += 512 {
			_, err = f.WriteAt(bytes.Repeat([]byte{0xA5}, 500), at)
			o.must(err)
		}
		o.must(f.Close())
	}
	o.same("with a damaged file", before, o.reads())
	o.refused("with a damaged file", store.ErrCorrupt.Error())
	log.has(t, store.ErrCorrupt.Error())
}

// full is a store on a full disk.
type full struct{ store.Store }

func (full) AddPolicies(context.Context, []policy.Policy) (api.Revision, error) {
	return 0, fmt.Errorf("add policies: %w", store.ErrFull)
}

func (full) PutSecurityGroup(context.Context, policy.SecurityGroup) error {
	return fmt.Errorf("store security group: %w", store.ErrFull)
}

// TestFullDiskIsTold is the answer where the store has no space; package sqlite
// fills a real disk.
func TestFullDiskIsTold(t *testing.T) {
	var log journal
	w := start(t, func(o *server.Options) {
		o.Store = full{o.Store}
		o.Log = slog.New(slog.NewTextHandler(&log, nil))
	})
	w.expect("create", w.call("POST", policies, w.admin, body("a b tcp 1 1")), 503, `{"error": "database create failed"}`)
	w.expect("a group", w.call("PUT", groups+"/g", w.admin, `{"name":"x","rules":[]}`), 503, `{"error": "no space left for the database"}`)
	w.expect("reads go on", w.call("GET", policies, w.admin, ""), 200, `{"total_policies":0,"policies":[]}`)
	log.has(t, "no space left for the database")
}
