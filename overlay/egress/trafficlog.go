package egress

import (
	"encoding/json"
	"io"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"tulle/policy"
)

// LogOptions is what a TrafficLog is told.
type LogOptions struct {
	Out io.Writer
	// All logs every conversation; otherwise accepted ones are logged where a rule
	// says so. Refusals are always logged.
	All bool
	// Denied and AcceptedUDP are how many lines a second one container may write of
	// refusals, and of accepted datagram conversations. 0: 1 and 100.
	Denied, AcceptedUDP int
	HostIP, HostID      string
}

// TrafficLog writes what was allowed and refused, one JSON object a line, in the
// shape of the original's enriched logs.
type TrafficLog struct {
	opt LogOptions

	mu      sync.Mutex // guards what follows, and Out
	second  int64
	written map[logBucket]int // this second
	skipped uint64
}

type logBucket struct {
	container string
	denied    bool
}

// NewTrafficLog makes one.
func NewTrafficLog(o LogOptions) *TrafficLog {
	if o.Denied <= 0 {
		o.Denied = 1
	}
	if o.AcceptedUDP <= 0 {
		o.AcceptedUDP = 100
	}
	return &TrafficLog{opt: o, written: map[logBucket]int{}}
}

type logLine struct {
	Timestamp string  `json:"timestamp"`
	Source    string  `json:"source"`
	Message   string  `json:"message"`
	LogLevel  int     `json:"log_level"`
	Data      logData `json:"data"`
}

type logData struct {
	Packet logPacket `json:"packet"`
	Source logSource `json:"source"`
	Reason string    `json:"reason,omitempty"`
	Group  string    `json:"security_group,omitempty"`
	DryRun bool      `json:"dry_run,omitempty"`
}

type logPacket struct {
	Direction string     `json:"direction"`
	Allowed   bool       `json:"allowed"`
	SrcIP     netip.Addr `json:"src_ip"`
	DstIP     netip.Addr `json:"dst_ip"`
	SrcPort   uint16     `json:"src_port"`
	DstPort   uint16     `json:"dst_port"`
	Protocol  string     `json:"protocol"`
	Mark      string     `json:"mark"`
	ICMPType  uint8      `json:"icmp_type"`
	ICMPCode  uint8      `json:"icmp_code"`
}

type logSource struct {
	ContainerID string `json:"container_id"`
	AppGUID     string `json:"app_guid"`
	AppName     string `json:"app_name,omitempty"`
	SpaceGUID   string `json:"space_guid"`
	OrgGUID     string `json:"organization_guid"`
	HostIP      string `json:"host_ip"`
	HostGUID    string `json:"host_guid"`
}

// write writes a line, unless the container has written its share.
func (t *TrafficLog) write(at time.Time, who Identity, ev event) {
	v, dry, p, from := ev.verdict, ev.dry, ev.packet, ev.from
	allowed := v == Allowed || dry
	if v == Allowed && !ev.byRule && !t.opt.All {
		return
	}
	limit := t.opt.Denied
	switch {
	case allowed && !dry && p.Protocol == "udp":
		limit = t.opt.AcceptedUDP
	case allowed && !dry:
		limit = 0 // one line a connection, as many as there are
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if at.Unix() != t.second {
		t.second = at.Unix()
		clear(t.written)
	}
	b := logBucket{who.Container, !allowed || dry}
	if limit > 0 && t.written[b] >= limit {
		t.skipped++
		return
	}
	if limit > 0 {
		t.written[b]++
	}
	word := "denied"
	if allowed {
		word = "allowed"
	}
	l := logLine{
		Timestamp: strconv.FormatFloat(float64(at.UnixMicro())/1e6, 'f', 6, 64), Source: "tulle-celld", Message: "cfnetworking.iptables.egress-" + word, LogLevel: 1,
		Data: logData{
			Packet: logPacket{Direction: "egress", Allowed: allowed, SrcIP: from.Addr(), DstIP: p.To, SrcPort: from.Port(), DstPort: p.Port,
				Protocol: p.Protocol, Mark: "0x0", ICMPType: p.Type, ICMPCode: p.Code},
			Source: logSource{ContainerID: who.Container, AppGUID: who.App, AppName: who.AppName, SpaceGUID: who.Space, OrgGUID: who.Org, HostIP: t.opt.HostIP, HostGUID: t.opt.HostID},
			Group:  ev.group, DryRun: dry,
		},
	}
	if p.Protocol == "icmp" {
		l.Data.Packet.SrcPort = 0
	}
	if v != Allowed {
		l.Data.Reason = v.String()
	}
	line, err := json.Marshal(l)
	if err != nil {
		return
	}
	_, _ = t.opt.Out.Write(append(line, '\n'))
}

// event is a verdict to be counted and, maybe, logged.
type event struct {
	verdict Verdict
	packet  policy.Packet
	from    netip.AddrPort
	group   string // whose rule it was
	byRule  bool   // the rule wants it logged
	dry     bool   // it was not enforced
}

func (e *Egress) report(c *container, ev event) {
	e.counts.verdicts[ev.verdict].Add(1)
	if e.opt.Traffic != nil {
		e.opt.Traffic.write(e.opt.Now(), c.who, ev)
	}
}
