package overlay

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"tulle/overlay/control"
	"tulle/overlay/datapath"
	"tulle/overlay/fib"
	"tulle/overlay/packet"
	"tulle/overlay/trafficlog"
)

// gatherEvery is how long a verdict between containers waits until it is written.
const gatherEvery = 100 * time.Millisecond

// traffic is a life's log of what was allowed and refused, and what has it say more
// or less at run time.
type traffic struct {
	l        *life
	file     *os.File        // nil: there is no log
	log      *trafficlog.Log // likewise
	switched chan struct{}   // capacity 1

	mu       sync.Mutex         // guards what follows, and switching
	verdicts *datapath.Verdicts // between containers; nil: nobody wants them
	lost     uint64             // by former ones
}

// open begins the log. Nothing is written before the path is there.
func (t *traffic) open(l *life) error {
	t.l, t.switched = l, make(chan struct{}, 1)
	cfg := &l.d.cfg.Egress
	if cfg.Log == "" {
		return nil
	}
	f, err := os.OpenFile(cfg.Log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("traffic log: %w", err)
	}
	t.file = f
	t.log = trafficlog.New(trafficlog.Options{Out: f, Switches: cfg.Logged, Denied: cfg.LogDenied, AcceptedUDP: cfg.LogUDP,
		HostIP: l.d.cfg.Underlay.String(), HostID: l.d.client.Cell()})
	return nil
}

// close writes what waits. Nobody puts any more.
func (t *traffic) close() error {
	if t.file == nil {
		return nil
	}
	t.log.Close()
	return t.file.Close()
}

// set switches the log, as far as s says.
func (t *traffic) set(s control.TrafficLogSet) control.TrafficLog {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.log.Switches()
	for _, c := range []struct {
		to   *bool
		what *bool
	}{{s.Allowed, &now.Allowed}, {s.Denied, &now.Denied}, {s.ContainersAllowed, &now.ContainersAllowed}, {s.ContainersDenied, &now.ContainersDenied}} {
		if c.to != nil {
			*c.what = *c.to
		}
	}
	if now != t.log.Switches() {
		t.log.Set(now)
		t.tellLocked(now)
		t.l.d.log.Info("traffic log is switched", "allowed", now.Allowed, "denied", now.Denied,
			"containers allowed", now.ContainersAllowed, "containers denied", now.ContainersDenied)
	}
	got := t.statsLocked()
	return control.TrafficLog{File: t.file.Name(), Allowed: now.Allowed, Denied: now.Denied, ContainersAllowed: now.ContainersAllowed, ContainersDenied: now.ContainersDenied,
		Written: got.Written, Limited: got.Limited, Lost: got.Lost, Failed: got.Failed}
}

// stats are the log's, with what was lost on the way to it.
func (t *traffic) stats() trafficlog.Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.statsLocked()
}

func (t *traffic) statsLocked() trafficlog.Stats {
	if t.log == nil {
		return trafficlog.Stats{}
	}
	s := t.log.Stats()
	s.Lost += t.lost
	if t.verdicts != nil {
		s.Lost += t.verdicts.Lost()
	}
	return s
}

// tellLocked has the path tell what is wanted. gather writes what waits of before.
func (t *traffic) tellLocked(s trafficlog.Switches) {
	if t.verdicts != nil {
		t.lost += t.verdicts.Lost()
	}
	t.verdicts = nil
	if s.ContainersAllowed || s.ContainersDenied {
		t.verdicts = datapath.NewVerdicts(s.ContainersAllowed, s.ContainersDenied)
	}
	t.l.path.Tell(t.verdicts)
	select {
	case t.switched <- struct{}{}:
	default:
	}
}

// TrafficLog implements control.Handler.
func (l *life) TrafficLog(_ context.Context, p control.Peer, s control.TrafficLogSet) (control.TrafficLog, error) {
	t := &l.outside.traffic
	if t.log == nil {
		if s == (control.TrafficLogSet{}) {
			return control.TrafficLog{}, nil
		}
		return control.TrafficLog{}, errNoTrafficLog
	}
	return t.set(s), nil
}

var errNoTrafficLog = control.Errorf(control.CodeUnavailable, "this cell has no traffic log: name a file (egress.log) in its configuration and start it again")

// gather writes verdicts between containers until ctx ends; while nobody wants any
// it sleeps.
func (t *traffic) gather(ctx context.Context) {
	if t.log == nil {
		return
	}
	t.mu.Lock()
	t.tellLocked(t.log.Switches())
	t.mu.Unlock()
	tick := time.NewTicker(gatherEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		t.mu.Lock()
		v := t.verdicts
		t.mu.Unlock()
		if v == nil {
			tick.Stop()
		} else {
			tick.Reset(gatherEvery)
		}
		select {
		case <-ctx.Done():
		case <-t.switched:
		case <-tick.C:
		}
		if v != nil {
			t.write(v)
		}
	}
}

// write makes entries of what v has, with both ends as far as they are known.
func (t *traffic) write(v *datapath.Verdicts) {
	snap := t.l.world.fib.Load()
	for told := (datapath.Told{}); v.Take(&told); {
		e := trafficlog.Entry{
			Between: true, Allowed: told.Reason == datapath.Passed, Mark: uint32(told.Tag),
			Src: netip.AddrPortFrom(told.Src, told.SrcPort), Dst: netip.AddrPortFrom(told.Dst, told.DstPort),
			Protocol: protocolName(told.Proto), Type: told.ICMPType, Code: told.ICMPCode,
			Own: t.end(snap, told.Src), Other: t.end(snap, told.Dst),
		}
		// A refusal of what nobody has is the affair of who asked for it.
		if e.Ingress = told.Ingress && e.Other != nil; e.Ingress {
			e.Own, e.Other = e.Other, e.Own
		}
		if told.Reason != datapath.Passed {
			e.Reason = told.Reason.String()
		}
		t.log.Put(&e)
	}
}

// end is who has an address now, nil if nobody knows.
func (t *traffic) end(snap *fib.Snapshot, addr netip.Addr) *trafficlog.End {
	l := t.l
	local, remote, peer := snap.Lookup(addr)
	switch {
	case local != nil:
		l.mu.Lock()
		defer l.mu.Unlock()
		if at := l.attached[local.Container]; at != nil {
			end := identityOf(at.e).End()
			return &end
		}
		return &trafficlog.End{Container: local.Container, App: string(local.App)}
	case peer == nil:
		return nil
	}
	end := &trafficlog.End{HostID: peer.Name, HostIP: peer.Underlay.Addr().String()}
	if remote != nil {
		end.App = string(remote.App)
		// What another instance of it here is called, it is called there.
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, at := range l.attached {
			if at.e.AppID == remote.App {
				end.AppName, end.Space, end.Org = at.e.App.Name, at.e.App.Space, at.e.App.Org
				break
			}
		}
	}
	return end
}

func protocolName(proto uint8) string {
	switch proto {
	case packet.ProtoTCP:
		return "tcp"
	case packet.ProtoUDP:
		return "udp"
	case packet.ProtoICMP, packet.ProtoICMPv6:
		return "icmp"
	}
	return fmt.Sprint(proto)
}
