package trafficlog

import (
	"encoding/json"
	"net/netip"
	"strconv"
	"time"
)

type line struct {
	Timestamp string `json:"timestamp"`
	Source    string `json:"source"`
	Message   string `json:"message"`
	LogLevel  int    `json:"log_level"`
	Data      data   `json:"data"`
}

// data names the container at its end, as the original does; between containers the
// other end stands at the other place.
type data struct {
	Packet      packet     `json:"packet"`
	Source      *container `json:"source,omitempty"`
	Destination *container `json:"destination,omitempty"`
	Reason      string     `json:"reason,omitempty"`
	Group       string     `json:"security_group,omitempty"`
	DryRun      bool       `json:"dry_run,omitempty"`
}

type packet struct {
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

type container struct {
	ContainerID string `json:"container_id"`
	AppGUID     string `json:"app_guid"`
	AppName     string `json:"app_name,omitempty"`
	SpaceGUID   string `json:"space_guid"`
	OrgGUID     string `json:"organization_guid"`
	HostIP      string `json:"host_ip"`
	HostGUID    string `json:"host_guid"`
}

// line is the entry as a line.
func (l *Log) line(at time.Time, e *Entry) ([]byte, error) {
	direction, word := "egress", "denied"
	own, other := l.container(e.Own), l.container(e.Other)
	d := data{Source: own, Destination: other, Reason: e.Reason, Group: e.Group, DryRun: e.DryRun}
	if e.Ingress {
		direction = "ingress"
		d.Source, d.Destination = other, own
	}
	if e.Allowed {
		word = "allowed"
	}
	d.Packet = packet{Direction: direction, Allowed: e.Allowed, SrcIP: e.Src.Addr(), DstIP: e.Dst.Addr(), SrcPort: e.Src.Port(), DstPort: e.Dst.Port(),
		Protocol: e.Protocol, Mark: "0x" + strconv.FormatUint(uint64(e.Mark), 16), ICMPType: e.Type, ICMPCode: e.Code}
	b, err := json.Marshal(line{
		Timestamp: strconv.FormatFloat(float64(at.UnixMicro())/1e6, 'f', 6, 64), Source: "tulle-celld",
		Message: "cfnetworking.iptables." + direction + "-" + word, LogLevel: 1, Data: d,
	})
	return append(b, '\n'), err
}

func (l *Log) container(e *End) *container {
	if e == nil {
		return nil
	}
	c := &container{ContainerID: e.Container, AppGUID: e.App, AppName: e.AppName, SpaceGUID: e.Space, OrgGUID: e.Org, HostIP: e.HostIP, HostGUID: e.HostID}
	if c.HostIP == "" && c.HostGUID == "" {
		c.HostIP, c.HostGUID = l.opt.HostIP, l.opt.HostID
	}
	return c
}
