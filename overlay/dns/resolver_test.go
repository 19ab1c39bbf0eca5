package dns

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

var container = netip.MustParseAddr("10.255.1.7")

// resolver is a DNS server of the test's on one loopback port, UDP and TCP.
type resolver struct {
	addr netip.AddrPort
	udp  atomic.Int64
	tcp  atomic.Int64
}

func serveDNS(t testing.TB, answer func(w dns.ResponseWriter, q *dns.Msg)) *resolver {
	t.Helper()
	r := new(resolver)
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		if w.RemoteAddr().Network() == "tcp" {
			r.tcp.Add(1)
		} else {
			r.udp.Add(1)
		}
		answer(w, q)
	})
	packets, stream := samePort(t)
	r.addr = packets.LocalAddr().(*net.UDPAddr).AddrPort()
	for _, s := range []*dns.Server{{PacketConn: packets, Handler: handler}, {Listener: stream, Handler: handler}} {
		up := make(chan struct{})
		s.NotifyStartedFunc = func() { close(up) }
		go s.ActivateAndServe()
		<-up
		t.Cleanup(func() { s.Shutdown() })
	}
	return r
}

// samePort listens on one port number over UDP and TCP. A port that is free
// for one need not be for the other.
func samePort(t testing.TB) (net.PacketConn, net.Listener) {
	t.Helper()
	var last error
	for range 100 {
		stream, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		packets, err := net.ListenPacket("udp", stream.Addr().String())
		if err == nil {
			return packets, stream
		}
		last = err
		stream.Close()
	}
	t.Fatal(last)
	return nil, nil
}

// says answers every A question with the addresses.
func says(addresses ...string) func(dns.ResponseWriter, *dns.Msg) {
	return func(w dns.ResponseWriter, q *dns.Msg) { w.WriteMsg(reply(q, addresses...)) }
}

func reply(q *dns.Msg, addresses ...string) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	for _, a := range addresses {
		m.Answer = append(m.Answer, &dns.A{
			Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60},
			A:   net.ParseIP(a)})
	}
	return m
}

func fails(rcode int) func(dns.ResponseWriter, *dns.Msg) {
	return func(w dns.ResponseWriter, q *dns.Msg) { w.WriteMsg(new(dns.Msg).SetRcode(q, rcode)) }
}

func silent(dns.ResponseWriter, *dns.Msg) {}

// closedPort is an address where nobody listens.
func closedPort(t testing.TB) netip.AddrPort {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func start(t testing.TB, o Options) *Resolver {
	t.Helper()
	f := New(o)
	t.Cleanup(func() { f.Close() })
	return f
}

// ask submits b and waits for the reply.
func ask(t testing.TB, f *Resolver, b []byte) []byte {
	t.Helper()
	got := make(chan []byte, 1)
	if !f.Submit(container, b, func(b []byte) { got <- b }) {
		t.Fatal("the query was not taken")
	}
	select {
	case b := <-got:
		return b
	case <-time.After(10 * time.Second):
		t.Fatal("no reply")
		return nil
	}
}

// resolve asks for a name and returns code and addresses.
func resolve(t testing.TB, f *Resolver, name string) (rcode int, addresses []string) {
	t.Helper()
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)
	m := exchange(t, f, q)
	for _, rr := range m.Answer {
		addresses = append(addresses, rr.(*dns.A).A.String())
	}
	return m.Rcode, addresses
}

func exchange(t testing.TB, f *Resolver, q *dns.Msg) *dns.Msg {
	t.Helper()
	b, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	m := new(dns.Msg)
	if err := m.Unpack(ask(t, f, b)); err != nil {
		t.Fatal(err)
	}
	if m.Id != q.Id || !m.Response {
		t.Errorf("reply has id %d, response %v; want %d, true", m.Id, m.Response, q.Id)
	}
	if diff := cmp.Diff(q.Question, m.Question); diff != "" {
		t.Errorf("question in the reply (-want +got):\n%s", diff)
	}
	return m
}

// Resolvers are asked in turn until one settles the question.
func TestOrder(t *testing.T) {
	good := serveDNS(t, says("192.0.2.1"))
	second := serveDNS(t, says("192.0.2.2"))
	quiet := serveDNS(t, silent)
	broken := serveDNS(t, fails(dns.RcodeServerFailure))
	none := serveDNS(t, fails(dns.RcodeNameError))
	closed := closedPort(t)
	for _, row := range []struct {
		name      string
		upstreams []netip.AddrPort
		rcode     int
		addresses []string
		retried   uint64
	}{
		{"the first answers", []netip.AddrPort{good.addr, second.addr}, dns.RcodeSuccess, []string{"192.0.2.1"}, 0},
		{"the first is silent", []netip.AddrPort{quiet.addr, second.addr}, dns.RcodeSuccess, []string{"192.0.2.2"}, 1},
		{"the first is not there", []netip.AddrPort{closed, second.addr}, dns.RcodeSuccess, []string{"192.0.2.2"}, 1},
		{"the first is broken", []netip.AddrPort{broken.addr, second.addr}, dns.RcodeSuccess, []string{"192.0.2.2"}, 1},
		{"no such name settles it", []netip.AddrPort{none.addr, second.addr}, dns.RcodeNameError, nil, 0},
		{"a broken answer is better than none", []netip.AddrPort{broken.addr, closed}, dns.RcodeServerFailure, nil, 1},
		{"nobody answers", []netip.AddrPort{closed, quiet.addr}, dns.RcodeServerFailure, nil, 1},
		{"nobody to ask", []netip.AddrPort{}, dns.RcodeServerFailure, nil, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			f := start(t, Options{Upstreams: row.upstreams, Timeout: 100 * time.Millisecond})
			rcode, addresses := resolve(t, f, "example.com")
			if rcode != row.rcode || !cmp.Equal(addresses, row.addresses) {
				t.Errorf("got %s %v, want %s %v", dns.RcodeToString[rcode], addresses, dns.RcodeToString[row.rcode], row.addresses)
			}
			if got := f.Stats().Retried; got != row.retried {
				t.Errorf("retried %d times, want %d", got, row.retried)
			}
		})
	}
}

// A resolver from before EDNS, which refuses what has it, is asked without.
func TestResolverWithoutEDNS(t *testing.T) {
	for _, rcode := range []int{dns.RcodeFormatError, dns.RcodeNotImplemented} {
		old := serveDNS(t, func(w dns.ResponseWriter, q *dns.Msg) {
			if q.IsEdns0() == nil {
				w.WriteMsg(reply(q, "192.0.2.1"))
				return
			}
			m := new(dns.Msg).SetRcode(q, rcode)
			m.Question = nil
			w.WriteMsg(m)
		})
		r := start(t, Options{Upstreams: []netip.AddrPort{old.addr}})
		if rcode, got := resolve(t, r, "example.com"); rcode != dns.RcodeSuccess || !cmp.Equal(got, []string{"192.0.2.1"}) {
			t.Errorf("got %s %v", dns.RcodeToString[rcode], got)
		}
	}
}

// Answers that a stranger could send, with another id or question, are waited
// over; only the true one counts.
func TestForgedAnswersAreIgnored(t *testing.T) {
	r := serveDNS(t, func(w dns.ResponseWriter, q *dns.Msg) {
		otherID := reply(q, "198.51.100.66")
		otherID.Id++
		otherName := reply(q, "198.51.100.66")
		otherName.Question = []dns.Question{{Name: "evil.example.", Qtype: dns.TypeA, Qclass: dns.ClassINET}}
		noAnswer := reply(q, "198.51.100.66")
		noAnswer.Response = false
		for _, m := range []*dns.Msg{otherID, otherName, noAnswer} {
			w.WriteMsg(m)
		}
		w.Write([]byte{1, 2, 3})
		w.WriteMsg(reply(q, "192.0.2.1"))
	})
	f := start(t, Options{Upstreams: []netip.AddrPort{r.addr}})
	if rcode, got := resolve(t, f, "example.com"); rcode != dns.RcodeSuccess || !cmp.Equal(got, []string{"192.0.2.1"}) {
		t.Errorf("got %s %v", dns.RcodeToString[rcode], got)
	}
}

// A long answer is fetched over TCP and cut to what the asker takes.
func TestLongAnswers(t *testing.T) {
	var many []string
	for i := range 100 {
		many = append(many, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}).String())
	}
	r := serveDNS(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := reply(q, many...)
		if w.RemoteAddr().Network() == "udp" {
			m.Answer, m.Truncated = m.Answer[:3], true
		}
		w.WriteMsg(m)
	})
	f := start(t, Options{Upstreams: []netip.AddrPort{r.addr}})
	for _, row := range []struct {
		name string
		size uint16 // of the asker's EDNS; 0 none
		max  int
	}{{"no EDNS", 0, 512}, {"EDNS 900", 900, 900}, {"EDNS 65535", 65535, maxUDP}, {"EDNS 1", 1, 512}} {
		q := new(dns.Msg).SetQuestion("example.com.", dns.TypeA)
		if row.size > 0 {
			q.SetEdns0(row.size, true)
		}
		b, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		got := ask(t, f, b)
		m := new(dns.Msg)
		if err := m.Unpack(got); err != nil {
			t.Fatalf("%s: %v", row.name, err)
		}
		if len(got) > row.max || len(got) < row.max-60 || !m.Truncated {
			t.Errorf("%s: %d bytes, truncated %v; want nearly %d, true", row.name, len(got), m.Truncated, row.max)
		}
		if opt := m.IsEdns0(); (opt != nil) != (row.size > 0) || opt != nil && !opt.Do() {
			t.Errorf("%s: OPT record %v", row.name, opt)
		}
	}
	if r.tcp.Load() != 2 { // with the DO bit and without
		t.Errorf("%d questions over TCP, want 2", r.tcp.Load())
	}
}

// What is no honest question is refused without asking anybody.
func TestBadQueries(t *testing.T) {
	outside := serveDNS(t, says("192.0.2.1"))
	f := start(t, Options{Upstreams: []netip.AddrPort{outside.addr}, Workers: 1})
	question := func(change func(*dns.Msg)) []byte {
		m := new(dns.Msg).SetQuestion("example.com.", dns.TypeA)
		change(m)
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, row := range []struct {
		name  string
		query []byte
		rcode int
	}{
		{"no question", question(func(m *dns.Msg) { m.Question = nil }), dns.RcodeFormatError},
		{"two questions", question(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), dns.RcodeFormatError},
		{"cut off", question(func(*dns.Msg) {})[:20], dns.RcodeFormatError},
		{"a loop of pointers", append([]byte{0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}, 0xC0, 12, 0, 1, 0, 1), dns.RcodeFormatError},
		{"oversize", append(question(func(*dns.Msg) {}), make([]byte, maxQuery)...), dns.RcodeFormatError},
		{"update", question(func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }), dns.RcodeNotImplemented},
		{"zone transfer", question(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAXFR }), dns.RcodeRefused},
		{"chaos", question(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), dns.RcodeRefused},
		{"EDNS 1", question(func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }), dns.RcodeBadVers},
	} {
		m := new(dns.Msg)
		if err := m.Unpack(ask(t, f, bytes.Clone(row.query))); err != nil {
			t.Errorf("%s: %v", row.name, err)
			continue
		}
		if m.Rcode != row.rcode || m.Id != uint16(row.query[0])<<8|uint16(row.query[1]) || !m.Response {
			t.Errorf("%s: %v, want %s", row.name, m.MsgHdr, dns.RcodeToString[row.rcode])
		}
	}
	if n := outside.udp.Load(); n != 0 {
		t.Errorf("the resolver was asked %d times", n)
	}
	before := f.Stats().Malformed
	for _, b := range [][]byte{nil, {1}, make([]byte, 11), question(func(m *dns.Msg) { m.Response = true })} {
		f.Submit(container, b, func([]byte) { t.Error("a datagram without a question was answered") })
	}
	resolve(t, f, "example.com") // one worker: what was submitted before is done
	if got := f.Stats().Malformed - before; got != 4 {
		t.Errorf("%d counted as malformed, want 4", got)
	}
}

// Garbage is counted each time, and told now and then, with who sent it.
func TestMalformedIsTold(t *testing.T) {
	var log bytes.Buffer
	now := time.Unix(1_800_000_000, 0)
	f := start(t, Options{Upstreams: []netip.AddrPort{}, Now: func() time.Time { return now }, Log: slog.New(slog.NewTextHandler(&log, nil))})
	for range 100 {
		f.Submit(container, []byte{1}, func([]byte) { t.Error("answered") })
	}
	now = now.Add(tellEvery)
	f.Submit(container, make([]byte, headerLen), func([]byte) {})
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], `container=10.255.1.7 error="not a query" malformed_so_far=1`) ||
		!strings.Contains(lines[1], `error="not one readable question" malformed_so_far=101`) {
		t.Errorf("told:\n%s", log.String())
	}
	if got := f.Stats().Malformed; got != 101 {
		t.Errorf("%d counted, want 101", got)
	}
}

// One container cannot hold what all need, and a full queue does not block.
func TestLimits(t *testing.T) {
	asked := make(chan struct{}, 16)
	r := serveDNS(t, func(dns.ResponseWriter, *dns.Msg) { asked <- struct{}{} })
	f := New(Options{Upstreams: []netip.AddrPort{r.addr}, Workers: 1, Queue: 2, PerSource: 2, Timeout: time.Minute, Patience: time.Minute})
	query, err := new(dns.Msg).SetQuestion("example.com.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	submit := func(from string) bool {
		return f.Submit(netip.MustParseAddr(from), bytes.Clone(query), func([]byte) { t.Error("answered") })
	}
	if !submit("10.255.0.1") {
		t.Fatal("the first query was dropped")
	}
	<-asked // the only worker waits for its answer
	for i, row := range []struct {
		from string
		want bool
	}{{"10.255.0.1", true}, {"10.255.0.1", false}, {"10.255.0.2", true}, {"10.255.0.3", false}} {
		if got := submit(row.from); got != row.want {
			t.Errorf("query %d, of %s: taken %v, want %v", i, row.from, got, row.want)
		}
	}
	f.Close()
	f.Close()
	if s := f.Stats(); s.OverSource != 1 || s.OverQueue != 1 || s.Queries != 5 {
		t.Errorf("counted %+v", s)
	}
}

func TestResolvConfIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	f := start(t, Options{ResolvConf: path, Overlay: netip.MustParsePrefix("10.255.0.0/16")})
	if got := f.upstreams.list(); len(got) != 0 {
		t.Errorf("before there is a file: %v", got)
	}
	for _, row := range []struct {
		text string
		want string
	}{
		{"nameserver 192.0.2.1\n", "[192.0.2.1:53]"},
		{"# two now\nsearch example.com\nnameserver 192.0.2.2\nnameserver 2001:db8::1\n", "[192.0.2.2:53 [2001:db8::1]:53]"},
		{"nameserver 169.254.0.2\nnameserver 10.255.3.4\nnameserver ::ffff:10.255.3.5\nnameserver nonsense\nnameserver 192.0.2.3\n", "[192.0.2.3:53]"},
		{"", "[]"},
	} {
		if err := os.WriteFile(path+".new", []byte(row.text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
		var got []string
		for range 2 {
			got = nil
			for _, a := range f.upstreams.list() {
				got = append(got, a.String())
			}
		}
		if s := "[" + strings.Join(got, " ") + "]"; s != row.want {
			t.Errorf("%q: %s, want %s", row.text, s, row.want)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if got := f.upstreams.list(); len(got) != 0 {
		t.Errorf("without a file: %v", got)
	}
}

// The socket and id of each question are its own.
// A file that cannot be read for a moment, since no descriptor is free, is read as soon
// as it can be; until then those of before are asked.
func TestResolvConfThatCannotBeRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	f := start(t, Options{ResolvConf: path})
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	limit := func(to unix.Rlimit) {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &to); err != nil {
			t.Fatal(err)
		}
	}
	var all unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &all); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { limit(all) })
	before := []netip.AddrPort{}
	for _, server := range []string{"192.0.2.53", "192.0.2.5"} {
		write("nameserver " + server + "\n")
		limit(unix.Rlimit{Max: all.Max})
		without := f.upstreams.list()
		limit(all)
		if !slices.Equal(without, before) {
			t.Errorf("without a descriptor: %v, want %v", without, before)
		}
		before = []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr(server), 53)}
		if got := f.upstreams.list(); !slices.Equal(got, before) {
			t.Errorf("then: %v, want %v", got, before)
		}
	}
}

func TestQuestionsAreNotPredictable(t *testing.T) {
	ids, ports := make(chan uint16, 32), make(chan string, 32)
	r := serveDNS(t, func(w dns.ResponseWriter, q *dns.Msg) {
		ids <- q.Id
		ports <- w.RemoteAddr().String()
		w.WriteMsg(reply(q, "192.0.2.1"))
	})
	f := start(t, Options{Upstreams: []netip.AddrPort{r.addr}})
	distinctIDs, distinctPorts := make(map[uint16]bool), make(map[string]bool)
	for i := range 16 {
		resolve(t, f, fmt.Sprintf("%d.example.com", i))
		distinctIDs[<-ids], distinctPorts[<-ports] = true, true
	}
	if len(distinctIDs) < 12 || len(distinctPorts) < 8 {
		t.Errorf("%d ids and %d ports in 16 questions", len(distinctIDs), len(distinctPorts))
	}
}

func TestCloseGivesUpWhatIsInTheAir(t *testing.T) {
	asked := make(chan struct{}, 1)
	r := serveDNS(t, func(dns.ResponseWriter, *dns.Msg) { asked <- struct{}{} })
	f := New(Options{Upstreams: []netip.AddrPort{r.addr}, Timeout: time.Hour, Patience: time.Hour})
	query, err := new(dns.Msg).SetQuestion("example.com.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	f.Submit(container, query, func([]byte) { t.Error("answered after Close") })
	<-asked
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	closed := make(chan struct{})
	go func() { f.Close(); close(closed) }()
	select {
	case <-closed:
	case <-ctx.Done():
		t.Fatal("Close waits for a resolver")
	}
}
