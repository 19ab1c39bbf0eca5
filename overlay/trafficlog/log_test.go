package trafficlog_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"tulle/overlay/trafficlog"
)

// page gathers what is written.
type page struct {
	mu   sync.Mutex
	b    bytes.Buffer
	wait chan struct{} // if not nil, a write waits for it
	fail error
}

func (p *page) Write(b []byte) (int, error) {
	if p.wait != nil {
		<-p.wait
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail != nil {
		return 0, p.fail
	}
	return p.b.Write(b)
}

func (p *page) lines(t *testing.T) (all []map[string]any) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for dec := json.NewDecoder(bytes.NewReader(p.b.Bytes())); dec.More(); {
		var m map[string]any
		if err := dec.Decode(&m); err != nil {
			t.Fatal(err)
		}
		all = append(all, m)
	}
	return all
}

var all = trafficlog.Switches{Allowed: true, Denied: true, ContainersAllowed: true, ContainersDenied: true}

func entry(change ...func(*trafficlog.Entry)) *trafficlog.Entry {
	e := &trafficlog.Entry{Protocol: "tcp", Src: netip.MustParseAddrPort("10.255.7.1:40000"), Dst: netip.MustParseAddrPort("10.255.8.2:8080"),
		Own: &trafficlog.End{Container: "c1", App: "web", Space: "s", Org: "o"}}
	for _, f := range change {
		f(e)
	}
	return e
}

func allowed(e *trafficlog.Entry) { e.Allowed = true }
func between(e *trafficlog.Entry) { e.Between = true }
func dry(e *trafficlog.Entry)     { e.DryRun, e.Allowed = true, true }
func byRule(e *trafficlog.Entry)  { e.ByRule = true }
func of(protocol string) func(*trafficlog.Entry) {
	return func(e *trafficlog.Entry) { e.Protocol = protocol }
}

// TestSwitches: each lets its own kind through, and what a rule wants always is.
func TestSwitches(t *testing.T) {
	kinds := []struct {
		name string
		e    *trafficlog.Entry
		on   trafficlog.Switches
	}{
		{"allowed", entry(allowed), trafficlog.Switches{Allowed: true}},
		{"denied", entry(), trafficlog.Switches{Denied: true}},
		{"dry run", entry(dry), trafficlog.Switches{Denied: true}},
		{"allowed between containers", entry(allowed, between), trafficlog.Switches{ContainersAllowed: true}},
		{"denied between containers", entry(between), trafficlog.Switches{ContainersDenied: true}},
	}
	count := func(s trafficlog.Switches, e *trafficlog.Entry) int {
		p := &page{}
		l := trafficlog.New(trafficlog.Options{Out: p})
		l.Set(s)
		if l.Switches() != s {
			t.Errorf("set %+v, has %+v", s, l.Switches())
		}
		l.Put(e)
		l.Close()
		return len(p.lines(t))
	}
	for _, k := range kinds {
		for _, other := range kinds {
			want := 0
			if k.on == other.on {
				want = 1
			}
			if got := count(other.on, k.e); got != want {
				t.Errorf("%s with the switch of %s: %d lines, want %d", k.name, other.name, got, want)
			}
		}
	}
	if got := count(trafficlog.Switches{}, entry(allowed, byRule)); got != 1 {
		t.Errorf("a rule wants it: %d lines", got)
	}
}

// TestLines have the original's shape; between containers both ends are told.
func TestLines(t *testing.T) {
	p := &page{}
	l := trafficlog.New(trafficlog.Options{Out: p, Switches: all, HostIP: "192.0.2.1", HostID: "cell-1", Now: func() time.Time { return time.UnixMicro(1700000000123456) }})
	l.Put(entry(allowed, between, func(e *trafficlog.Entry) {
		e.Ingress, e.Mark = true, 0x2a
		e.Other = &trafficlog.End{App: "db", HostIP: "192.0.2.9", HostID: "cell-9"}
	}))
	l.Put(entry(of("icmp"), func(e *trafficlog.Entry) { e.Type, e.Code, e.Reason, e.Group = 8, 3, "no_rule", "g" }))
	l.Close()
	lines := p.lines(t)
	if len(lines) != 2 {
		t.Fatalf("%d lines", len(lines))
	}
	for i, want := range []string{
		`{"timestamp":"1700000000.123456","source":"tulle-celld","message":"cfnetworking.iptables.ingress-allowed","log_level":1,"data":{` +
			`"packet":{"direction":"ingress","allowed":true,"src_ip":"10.255.7.1","dst_ip":"10.255.8.2","src_port":40000,"dst_port":8080,"protocol":"tcp","mark":"0x2a","icmp_type":0,"icmp_code":0},` +
			`"source":{"container_id":"","app_guid":"db","space_guid":"","organization_guid":"","host_ip":"192.0.2.9","host_guid":"cell-9"},` +
			`"destination":{"container_id":"c1","app_guid":"web","space_guid":"s","organization_guid":"o","host_ip":"192.0.2.1","host_guid":"cell-1"}}}`,
		`{"timestamp":"1700000000.123456","source":"tulle-celld","message":"cfnetworking.iptables.egress-denied","log_level":1,"data":{` +
			`"packet":{"direction":"egress","allowed":false,"src_ip":"10.255.7.1","dst_ip":"10.255.8.2","src_port":40000,"dst_port":8080,"protocol":"icmp","mark":"0x0","icmp_type":8,"icmp_code":3},` +
			`"source":{"container_id":"c1","app_guid":"web","space_guid":"s","organization_guid":"o","host_ip":"192.0.2.1","host_guid":"cell-1"},"reason":"no_rule","security_group":"g"}}`,
	} {
		var w map[string]any
		if err := json.Unmarshal([]byte(want), &w); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(lines[i]) != fmt.Sprint(w) {
			t.Errorf("line %d is\n%v, want\n%v", i+1, lines[i], w)
		}
	}
}

// TestShares: a container has so many lines a second of each kind, the next second
// as many, and another container its own.
func TestShares(t *testing.T) {
	p := &page{}
	now := time.Unix(1700000000, 0)
	var mu sync.Mutex
	l := trafficlog.New(trafficlog.Options{Out: p, Switches: all, Denied: 2, AcceptedUDP: 3, Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return now }})
	put := func(changes ...func(*trafficlog.Entry)) {
		for range 5 {
			l.Put(entry(changes...))
		}
	}
	round := func() {
		put()
		put(between)
		put(allowed, of("udp"))
		put(allowed, of("tcp"))
		put(func(e *trafficlog.Entry) { e.Own = &trafficlog.End{Container: "c2"} })
	}
	const each = 2 + 2 + 3 + 5 + 2
	settled := func(n uint64) {
		t.Helper()
		deadline := time.After(20 * time.Second)
		for again := time.NewTicker(time.Millisecond); ; {
			if s := l.Stats(); s.Written+s.Limited == n {
				return
			}
			select {
			case <-again.C:
			case <-deadline:
				t.Fatalf("stats %+v", l.Stats())
			}
		}
	}
	round()
	settled(25)
	if n := len(p.lines(t)); n != each {
		t.Errorf("%d lines in a second, want %d", n, each)
	}
	mu.Lock()
	now = now.Add(time.Second)
	mu.Unlock()
	round()
	settled(50)
	l.Close()
	if s := l.Stats(); len(p.lines(t)) != 2*each || s != (trafficlog.Stats{Written: 2 * each, Limited: 50 - 2*each}) {
		t.Errorf("%d lines, stats %+v", len(p.lines(t)), s)
	}
}

// TestNobodyWaitsForTheFile: while it does not take a line, entries are put at once;
// those that have no room are counted.
func TestNobodyWaitsForTheFile(t *testing.T) {
	p := &page{wait: make(chan struct{})}
	l := trafficlog.New(trafficlog.Options{Out: p, Switches: all, Room: 8})
	const n = 100
	for range n {
		l.Put(entry(allowed))
	}
	close(p.wait)
	l.Close()
	s := l.Stats()
	if s.Written+s.Lost != n || s.Lost < n-10 || int(s.Written) != len(p.lines(t)) {
		t.Errorf("stats %+v, %d lines", s, len(p.lines(t)))
	}
	p.fail = errors.New("no space left on device")
	l = trafficlog.New(trafficlog.Options{Out: p, Switches: all})
	l.Put(entry(allowed))
	l.Close()
	if s := l.Stats(); s.Failed != 1 || s.Written != 0 {
		t.Errorf("stats %+v of a line that could not be written", s)
	}
}

func TestPutDoesNotAllocate(t *testing.T) {
	p := &page{wait: make(chan struct{})}
	l := trafficlog.New(trafficlog.Options{Out: p, Switches: all, Room: 8})
	own := &trafficlog.End{Container: "c1"}
	src := netip.MustParseAddrPort("10.255.7.1:40000")
	put := func() { l.Put(&trafficlog.Entry{Src: src, Dst: src, Protocol: "tcp", Own: own}) }
	for range 20 {
		put()
	}
	if n := testing.AllocsPerRun(100, put); n != 0 {
		t.Errorf("%v allocations", n)
	}
	close(p.wait)
	l.Close()
}
