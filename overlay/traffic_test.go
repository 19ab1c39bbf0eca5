package overlay

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"tulle/overlay/control"
	"tulle/overlay/trafficlog"
)

// logged is a line of the traffic log, as far as a test looks at it.
type logged struct {
	Message string
	Data    struct {
		Packet struct {
			SrcPort  uint16 `json:"src_port"`
			DstPort  uint16 `json:"dst_port"`
			SrcIP    string `json:"src_ip"`
			DstIP    string `json:"dst_ip"`
			Protocol string
			Mark     string
		}
		Source, Destination struct {
			Container string `json:"container_id"`
			App       string `json:"app_guid"`
			Space     string `json:"space_guid"`
			Org       string `json:"organization_guid"`
			Cell      string `json:"host_guid"`
			IP        string `json:"host_ip"`
		}
		Reason string
	}
}

func (l logged) String() string {
	d := l.Data
	return fmt.Sprintf("%s %s %s>%s:%d from %s/%s/%s/%s on %s to %s/%s/%s/%s on %s: %s", strings.TrimPrefix(l.Message, "cfnetworking.iptables."), d.Packet.Protocol, d.Packet.SrcIP, d.Packet.DstIP, d.Packet.DstPort,
		d.Source.Container, d.Source.App, d.Source.Space, d.Source.Org, d.Source.Cell, d.Destination.Container, d.Destination.App, d.Destination.Space, d.Destination.Org, d.Destination.Cell, d.Reason)
}

// logged reads what the cell has written.
func (c *cell) logged() (all []logged) {
	c.Helper()
	b, err := os.ReadFile(c.cfg.Egress.Log)
	if err != nil {
		c.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		var l logged
		if err := json.Unmarshal(line, &l); err != nil {
			c.Fatalf("%s: %v", line, err)
		}
		all = append(all, l)
	}
	return all
}

func (c *cell) untilLogged(want ...string) {
	c.Helper()
	var got []logged
	eventually(c.T, fmt.Sprintf("%s writes %d lines", c.name, len(want)), func() bool { got = c.logged(); return len(got) >= len(want) })
	for i, l := range got {
		if i >= len(want) || l.String() != want[i] {
			c.Errorf("%s writes, as line %d,\n%s, want\n%s", c.name, i+1, l, strings.Join(want, "\n"))
		}
	}
}

// TestTrafficBetweenContainersIsLogged: what is refused at the source, and what is
// allowed at the destination, each when it is switched on, by the local API or as
// the original's operators do, and both ends named.
func TestTrafficBetweenContainersIsLogged(t *testing.T) {
	p := newPlane(t)
	at := freePort(t)
	with := func(name string, change func(*EgressConfig)) func(*Config) {
		return func(c *Config) {
			c.Egress.Log, c.Egress.LogDenied = filepath.Join(p.dir, name+".log"), 1000
			if change != nil {
				change(&c.Egress)
			}
		}
	}
	one := p.cell("one", "127.0.0.1", with("one", nil))
	two := p.cell("two", "127.0.0.2", with("two", func(e *EgressConfig) { e.LogSwitch = at }))
	placed := func(r *control.Attach) { r.App.Space, r.App.Org = "s1", "o1" }
	web := one.attachWith("web-1", "web", control.LifelineConnection, placed)
	db := two.attachWith("db-1", "db", control.LifelineConnection, placed)
	for port := uint16(5432); port < 5440; port++ {
		db.listen(port)
	}
	set := func(c *cell, s control.TrafficLogSet) control.TrafficLog {
		t.Helper()
		got, err := c.client().TrafficLog(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	over := func(method, body string) string {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, "http://"+at.String()+"/iptables-c2c-logging", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		b, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(answer.StatusCode, " ", string(b))
	}
	yes, no := true, false

	// Off: nothing. Then refusals, where they fall.
	web.refused(db, 5432)
	if got := set(one, control.TrafficLogSet{}); got != (control.TrafficLog{File: one.cfg.Egress.Log}) {
		t.Errorf("at first: %+v", got)
	}
	if got := set(one, control.TrafficLogSet{ContainersDenied: &yes}); !got.ContainersDenied || got.ContainersAllowed {
		t.Errorf("switched on: %+v", got)
	}
	web.refused(db, 5433)
	refusal := fmt.Sprintf("egress-denied tcp %s>%s:5433 from web-1/web/s1/o1 on one to /// on two: no_endpoint", web.addr(), db.addr())
	one.untilLogged(refusal)
	// What nobody has, in the own lease, is the affair of who asks for it.
	nobody := &app{at: control.Attached{Address: netip.PrefixFrom(web.addr().Next().Next(), 32)}}
	if _, err := web.dial(nobody, 5433, patience); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("an address that nobody has: %v", err)
	}
	refusals := []string{refusal, fmt.Sprintf("egress-denied tcp %s>%s:5433 from web-1/web/s1/o1 on one to /// on : no_endpoint", web.addr(), nobody.addr())}
	one.untilLogged(refusals...)
	set(one, control.TrafficLogSet{ContainersDenied: &no}) // a policy takes its moment to arrive

	// What is allowed, where it arrives; the original's switch is that of cell two.
	p.allow(tcp("web", "db", 5434))
	web.reaches(db, 5434)
	for _, ask := range [][3]string{
		{"GET", "", "200 {\"enabled\":false}\n"},
		{"PUT", "nonsense", `400 { "error": "decoding request body as json" }`},
		{"PUT", "{}", `400 { "error": "missing required key 'enabled'" }`},
		{"PUT", `{"enabled":true}`, "200 {\"enabled\":true}\n"},
		{"POST", `{"enabled":false}`, "200 {\"enabled\":true}\n"},
	} {
		if got := over(ask[0], ask[1]); got != ask[2] {
			t.Errorf("%s %s: %q, want %q", ask[0], ask[1], got, ask[2])
		}
	}
	if got := set(two, control.TrafficLogSet{}); !got.ContainersAllowed || got.ContainersDenied {
		t.Errorf("switched as the original's: %+v", got)
	}
	web.reaches(db, 5434)
	arrival := fmt.Sprintf("ingress-allowed tcp %s>%s:5434 from /web// on one to db-1/db/s1/o1 on two: ", web.addr(), db.addr())
	two.untilLogged(arrival)
	if l := two.logged()[0].Data; l.Packet.Mark == "0x0" || l.Packet.SrcPort == 0 || l.Source.IP != "127.0.0.1" || l.Destination.IP != "127.0.0.2" {
		t.Errorf("the line has %+v", l)
	}

	// Off again, of which there is no line; and on, of which there is one.
	if got := over("PUT", `{"enabled":false}`); got != "200 {\"enabled\":false}\n" {
		t.Errorf("switched off: %q", got)
	}
	web.reaches(db, 5434)
	set(two, control.TrafficLogSet{ContainersAllowed: &yes})
	p.allow(tcp("web", "db", 5435))
	web.reaches(db, 5435)
	two.untilLogged(arrival, strings.Replace(arrival, "5434", "5435", 1))
	// What is refused at the source is a line there, and the app of the far end is known by now.
	set(one, control.TrafficLogSet{ContainersDenied: &yes})
	web.refused(db, 5436)
	one.untilLogged(append(refusals, strings.NewReplacer("5433", "5436", "/// on two: no_endpoint", "/db// on two: no_policy").Replace(refusal))...)

	// A start is as the configuration has it.
	two.shut()
	two.cfg.Egress.Logged = trafficlog.Switches{ContainersDenied: true}
	two.run()
	if got := set(two, control.TrafficLogSet{}); got.ContainersAllowed || !got.ContainersDenied {
		t.Errorf("after a start: %+v", got)
	}
}

// A cell without a log has nothing to switch, and says what is missing.
func TestNoTrafficLog(t *testing.T) {
	p := newPlane(t)
	one := p.cell("one", "127.0.0.1", nil)
	yes := true
	if got, err := one.client().TrafficLog(t.Context(), control.TrafficLogSet{}); err != nil || got != (control.TrafficLog{}) {
		t.Errorf("asked: %+v, %v", got, err)
	}
	if _, err := one.client().TrafficLog(t.Context(), control.TrafficLogSet{Denied: &yes}); codeOf(err) != control.CodeUnavailable || !strings.Contains(err.Error(), "egress.log") {
		t.Errorf("switched: %v", err)
	}
}
