package route

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
	"tulle/policy/store/sqlite"
)

const patience = 20 * time.Second

// startNATS is a real server; port -1 takes a free one.
func startNATS(t *testing.T, port int) *natsserver.Server {
	t.Helper()
	s, err := natsserver.NewServer(&natsserver.Options{Host: "127.0.0.1", Port: port, NoSigs: true, Username: "nats", Password: "pass"})
	if err != nil {
		t.Fatal(err)
	}
	go s.Start()
	if !s.ReadyForConnections(patience) {
		t.Fatal("NATS does not start")
	}
	t.Cleanup(s.Shutdown)
	return s
}

func port(s *natsserver.Server) int {
	at := netip.MustParseAddrPort(s.Addr().String())
	return int(at.Port())
}

// rig is a listener on a real store and a real NATS server, with an emitter.
type rig struct {
	*testing.T
	nats     *natsserver.Server
	store    store.Store
	refuse   *refusing
	listener *Listener
	emitter  *nats.Conn

	mu   sync.Mutex // guards what follows
	now  time.Time
	log  bytes.Buffer
	stop func()
}

// refusing is a store that can be made to fail.
type refusing struct {
	store.Store
	mu  sync.Mutex // guards err
	err error
}

func (r *refusing) set(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

func (r *refusing) AddRoutes(ctx context.Context, rs []policy.Route, beside func(policy.AppID) bool) (api.Revision, error) {
	r.mu.Lock()
	err := r.err
	r.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return r.Store.AddRoutes(ctx, rs, beside)
}

func (r *rig) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(p)
}

func (r *rig) clock() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now
}

func (r *rig) pass(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now = r.now.Add(d)
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

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{T: t, nats: startNATS(t, -1), now: time.Unix(1_800_000_000, 0)}
	s := openStore(t)
	var err error
	r.store, r.refuse = s, &refusing{Store: s}
	r.emitter, err = nats.Connect(r.nats.ClientURL(), nats.UserInfo("nats", "pass"), nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.emitter.Close)
	return r
}

// listen starts a listener; pruning is the test's to call.
func (r *rig) listen() {
	r.Helper()
	r.listenWith(func(*Options) {})
	r.until("connected", func() bool { return r.listener.Counts().Connected })
}

// listenWith is listen with other options, and does not wait for a connection.
func (r *rig) listenWith(change func(*Options)) {
	r.Helper()
	o := Options{Store: r.refuse, Servers: []string{r.nats.ClientURL()}, User: "nats", Password: "pass",
		Host: "10.0.0.9", Now: r.clock, Log: slog.New(slog.NewTextHandler(r, nil))}
	change(&o)
	var err error
	if r.listener, err = NewListener(o); err != nil {
		r.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.listener.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.Error(err)
		}
	})
	r.Cleanup(r.stop)
}

func (r *rig) publish(subject, message string) {
	r.Helper()
	if err := r.emitter.Publish(subject, []byte(message)); err != nil {
		r.Fatal(err)
	}
	if err := r.emitter.Flush(); err != nil {
		r.Fatal(err)
	}
}

// until waits until cond holds.
func (r *rig) until(what string, cond func() bool) {
	r.Helper()
	for begun := time.Now(); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Since(begun) > patience {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.Fatalf("never: %s\n%s", what, r.log.String())
		}
	}
}

// stored waits until the store has these registered routes, "name address" each.
func (r *rig) stored(what string, want ...string) {
	r.Helper()
	slices.Sort(want)
	r.until(what+": stored "+strings.Join(want, ", "), func() bool {
		rs, err := r.store.Routes(r.Context(), store.RouteFilter{})
		if err != nil {
			r.Fatal(err)
		}
		got := []string{}
		for _, route := range rs {
			if route.Address.IsValid() {
				got = append(got, string(route.Name)+" "+route.Address.String())
			}
		}
		slices.Sort(got)
		return slices.Equal(got, want)
	})
}

// A route emitter's life: it asks, registers, registers again, unregisters.
func TestEmitterRegisters(t *testing.T) {
	r := newRig(t)
	started := make(chan *nats.Msg, 4)
	if _, err := r.emitter.ChanSubscribe(subjectStart, started); err != nil {
		t.Fatal(err)
	}
	if err := r.emitter.Flush(); err != nil {
		t.Fatal(err)
	}
	r.listen()
	check := func(what string, data []byte) {
		t.Helper()
		var got struct {
			ID, Host string
			Interval int `json:"minimumRegisterIntervalInSeconds"`
			Prune    int `json:"pruneThresholdInSeconds"`
		}
		if err := json.Unmarshal(data, &got); err != nil || !strings.HasPrefix(got.ID, "0-") || got.Host != "10.0.0.9" || got.Interval != 60 || got.Prune != 120 {
			t.Errorf("%s: %s, %v", what, data, err)
		}
	}
	select {
	case m := <-started:
		check("start", m.Data)
	case <-time.After(patience):
		t.Fatal("no start")
	}
	m, err := r.emitter.Request(subjectGreet, nil, patience)
	if err != nil {
		t.Fatal(err)
	}
	check("greeting", m.Data)

	r.publish(subjectRegister, emitted)
	r.publish(subjectRegister, `{"host":"10.255.80.9","uris":["web.apps.internal","1.web.apps.internal"]}`)
	r.stored("registered", "web.apps.internal 10.255.77.2", "0.web.apps.internal 10.255.77.2", "web.apps.internal 10.255.80.9", "1.web.apps.internal 10.255.80.9")
	stats, err := r.store.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	before := stats.Revision
	for range 20 {
		r.publish(subjectRegister, emitted)
	}
	r.until("heard", func() bool { return r.listener.Counts().Registers == 22 })
	r.publish(subjectUnregister, `{"uris":["web.apps.internal"]}`) // without a host it removes nothing
	r.publish(subjectUnregister, `{"host":"10.255.80.9","uris":["web.apps.internal","1.web.apps.internal"]}`)
	r.stored("unregistered", "web.apps.internal 10.255.77.2", "0.web.apps.internal 10.255.77.2")
	if stats, err = r.store.Stats(t.Context()); err != nil || stats.Revision != before+1 {
		t.Errorf("revision %d after %d and one unregistration, %v", stats.Revision, before, err)
	}
	if c := r.listener.Counts(); c.Unregisters != 2 || c.Greets != 1 || c.Malformed != 0 || c.Routes != 2 || !c.Connected {
		t.Errorf("counted %+v", c)
	}
}

func TestMalformedMessagesAreCountedAndTold(t *testing.T) {
	r := newRig(t)
	r.listen()
	for _, m := range []string{"", "{", `{"uris":["a.apps.internal"]}`, `{"host":"10.255.1.1"}`, `{"host":"x","uris":["a.apps.internal"]}`,
		`{"host":"10.255.1.1","uris":["*.apps.internal"]}`, "\x00\xff"} {
		r.publish(subjectRegister, m)
	}
	r.publish(subjectUnregister, "nonsense")
	r.publish(subjectGreet, "no reply subject")
	r.publish(subjectRegister, `{"host":"10.255.1.1","uris":["good.apps.internal"]}`)
	r.stored("the good one", "good.apps.internal 10.255.1.1")
	r.until("eight are counted", func() bool { return r.listener.Counts().Malformed == 8 })
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, text := range []string{"message without host", "message without uris", `host \"x\", which is no address`, "Wildcard hosts are not supported"} {
		if !strings.Contains(r.log.String(), text) {
			t.Errorf("the log does not say %q:\n%s", text, r.log.String())
		}
	}
}

// What nobody registers again is pruned, but not while NATS is away.
func TestPruningPausesWhileNATSIsAway(t *testing.T) {
	r := newRig(t)
	r.listen()
	r.publish(subjectRegister, `{"host":"10.255.1.1","uris":["a.apps.internal"]}`)
	r.publish(subjectRegister, `{"host":"10.255.1.2","uris":["b.apps.internal"]}`)
	r.stored("both", "a.apps.internal 10.255.1.1", "b.apps.internal 10.255.1.2")

	at := port(r.nats)
	r.nats.Shutdown()
	r.until("NATS is missed", func() bool { return !r.listener.Counts().Connected })
	r.pass(time.Hour)
	r.listener.prune()
	r.nats = startNATS(t, at)
	r.until("NATS is back", func() bool { return r.listener.Counts().Connected })
	r.pass(59 * time.Second)
	r.listener.prune()
	if c := r.listener.Counts(); c.Pruned != 0 || c.Routes != 2 {
		t.Errorf("pruned while NATS was away, or too soon after: %+v", c)
	}
	r.until("the emitter is connected again", r.emitter.IsConnected)
	heard := r.listener.Counts().Registers
	r.publish(subjectRegister, `{"host":"10.255.1.1","uris":["a.apps.internal"]}`)
	r.until("heard", func() bool { return r.listener.Counts().Registers > heard })
	r.pass(time.Second)
	r.listener.prune()
	r.stored("b is stale", "a.apps.internal 10.255.1.1")
	if c := r.listener.Counts(); c.Pruned != 1 {
		t.Errorf("counted %+v", c)
	}
}

// A NATS server that takes too long to answer is told the start, and pruning begins,
// once it answers.
func TestStartIsTriedAgain(t *testing.T) {
	at, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	log := &waited{text: "the start is not told", said: make(chan struct{})}
	told := make(chan struct{}, 8)
	var serving sync.WaitGroup
	serving.Go(func() {
		c, err := at.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		fmt.Fprint(c, `INFO {"server_id":"busy","version":"2.10.0","proto":1,"max_payload":1048576}`+"\r\n")
		pings := 0
		for lines := bufio.NewScanner(c); lines.Scan(); {
			switch {
			case lines.Text() == "PING":
				if pings++; pings == 2 { // the first one is of the handshake
					<-log.said
				}
				fmt.Fprint(c, "PONG\r\n")
			case strings.HasPrefix(lines.Text(), "PUB "+subjectStart):
				told <- struct{}{}
			}
		}
	})
	l, err := NewListener(Options{Store: openStore(t), Servers: []string{"nats://" + at.Addr().String()}, Log: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	l.flush = 50 * time.Millisecond
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		log.Write([]byte(log.text))
		if err := <-done; err != nil {
			t.Error(err)
		}
		at.Close()
		serving.Wait()
	})
	select {
	case <-told:
	case <-time.After(patience):
		t.Fatal("the start is not told")
	}
	for begun := time.Now(); !l.Counts().Connected; time.Sleep(2 * time.Millisecond) {
		if time.Since(begun) > patience {
			t.Fatal("the listener does not know that NATS is there")
		}
	}
}

// waited is a log in which a text is waited for.
type waited struct {
	text string
	said chan struct{} // closed when it was written
	once sync.Once
}

func (w *waited) Write(p []byte) (int, error) {
	if strings.Contains(string(p), w.text) {
		w.once.Do(func() { close(w.said) })
	}
	return len(p), nil
}

// A restarted server goes on with what is stored, and it is its own to prune.
func TestRestartAdoptsWhatIsStored(t *testing.T) {
	r := newRig(t)
	app := policy.Route{Name: "web.apps.internal", App: "web"}
	if _, err := r.store.AddRoutes(t.Context(), []policy.Route{app, to("old.apps.internal 10.255.1.1")}, nil); err != nil {
		t.Fatal(err)
	}
	r.listen()
	r.until("adopted and connected", func() bool { c := r.listener.Counts(); return c.Routes == 1 && c.Connected })
	r.pass(3 * time.Minute)
	r.listener.prune()
	r.stored("not stale yet", "old.apps.internal 10.255.1.1")
	r.pass(time.Second)
	r.listener.prune()
	r.stored("stale")
	rs, err := r.store.Routes(t.Context(), store.RouteFilter{})
	if err != nil || len(rs) != 1 || rs[0] != app {
		t.Errorf("the app's route: %v, %v", rs, err)
	}
}

// TestStoreThatLostARoute: another server heard of its end, which this one did not,
// or a backup was restored. Who goes on registering it is found again.
func TestStoreThatLostARoute(t *testing.T) {
	r := newRig(t)
	r.listen()
	const message = `{"host":"10.255.1.1","uris":["a.apps.internal"]}`
	r.publish(subjectRegister, message)
	r.stored("registered", "a.apps.internal 10.255.1.1")
	if _, err := r.store.RemoveRoutes(t.Context(), []policy.Route{to("a.apps.internal 10.255.1.1")}); err != nil {
		t.Fatal(err)
	}
	if err := r.listener.adopt(t.Context()); err != nil { // as it does each interval
		t.Fatal(err)
	}
	r.publish(subjectRegister, message)
	r.stored("registered again", "a.apps.internal 10.255.1.1")
}

// What the store does not take is tried again; what came meanwhile counts.
func TestStoreThatFails(t *testing.T) {
	r := newRig(t)
	r.refuse.set(errors.New("disk on fire"))
	r.listen()
	r.publish(subjectRegister, `{"host":"10.255.1.1","uris":["a.apps.internal"]}`)
	r.publish(subjectRegister, `{"host":"10.255.1.2","uris":["b.apps.internal"]}`)
	r.until("the failure is told", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return strings.Contains(r.log.String(), "disk on fire")
	})
	r.publish(subjectUnregister, `{"host":"10.255.1.2","uris":["b.apps.internal"]}`)
	r.until("heard", func() bool { return r.listener.Counts().Unregisters == 1 })
	r.refuse.set(nil)
	r.stored("after all", "a.apps.internal 10.255.1.1")
}

// A name that is unregistered right after it was registered is gone: the two come
// under different subjects, in the emitter's order.
func TestOrderOfSubjects(t *testing.T) {
	r := newRig(t)
	r.listen()
	const n = 2000
	for i := range n {
		message := fmt.Appendf(nil, `{"host":"10.255.1.1","uris":["n%d.apps.internal"]}`, i)
		for _, subject := range []string{subjectRegister, subjectUnregister} {
			if err := r.emitter.Publish(subject, message); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.until("heard", func() bool { c := r.listener.Counts(); return c.Registers == n && c.Unregisters == n })
	if left := r.listener.Counts().Routes; left != 0 {
		t.Errorf("%d of %d names are left", left, n)
	}
}

func TestListenerOptions(t *testing.T) {
	for want, o := range map[string]Options{
		"no server is named":         {},
		"would go between two regis": {Servers: []string{"nats://127.0.0.1:4222"}, Stale: time.Minute, Interval: time.Minute},
	} {
		if _, err := NewListener(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", o, err, want)
		}
	}
}
