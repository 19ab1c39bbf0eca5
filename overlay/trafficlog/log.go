package trafficlog

import (
	"io"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"tulle/overlay/ring"
)

// Switches say what is written. What a rule wants logged always is.
type Switches struct {
	Allowed, Denied                     bool // conversations with the outside
	ContainersAllowed, ContainersDenied bool // of containers with each other
}

// End is a container, as far as it is known.
type End struct {
	Container, App, AppName, Space, Org string
	HostIP, HostID                      string // its cell; "": this one
}

// Entry is one verdict. Own and Other are not changed any more once they were put.
type Entry struct {
	Ingress  bool // Own is where it goes to, not where it comes from
	Between  bool // between containers
	Allowed  bool
	DryRun   bool // it was allowed, and would not be
	ByRule   bool // the rule that allows it wants it logged
	Src, Dst netip.AddrPort
	Protocol string
	Type     uint8 // of ICMP
	Code     uint8
	Mark     uint32 // the source app's tag
	Reason   string // why not
	Group    string // the security group whose rule it was
	// Own is the container whose affair it is, Other the one at the far end; nil:
	// nobody knows, or it is none.
	Own, Other *End
}

// Options is what a Log is made of.
type Options struct {
	Out      io.Writer
	Switches Switches
	// Denied and AcceptedUDP are how many lines a second one container may have of
	// refusals, and of accepted datagram conversations. 0: 1 and 100.
	Denied, AcceptedUDP int
	HostIP, HostID      string // this cell's
	Room                int    // entries that may wait; 0: 4096
	Now                 func() time.Time
}

// Log is made by New.
type Log struct {
	opt      Options
	switches atomic.Pointer[Switches]
	ring     *ring.Ring[Entry]
	news     chan struct{} // capacity 1
	stop     chan struct{}
	done     chan struct{}
	close    sync.Once
	counts   counters

	// The goroutine's own.
	second  int64
	written map[bucket]int // this second
}

// bucket is what a limit counts.
type bucket struct {
	container       string
	between, denied bool
}

type counters struct{ written, limited, lost, failed atomic.Uint64 }

// Stats are what became of entries.
type Stats struct {
	Written uint64
	Limited uint64 // more than a container may have
	Lost    uint64 // there was no room
	Failed  uint64 // they could not be written
}

// New makes a Log, whose goroutine ends with Close.
func New(o Options) *Log {
	if o.Denied <= 0 {
		o.Denied = 1
	}
	if o.AcceptedUDP <= 0 {
		o.AcceptedUDP = 100
	}
	if o.Room <= 0 {
		o.Room = 4096
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	l := &Log{opt: o, ring: ring.New[Entry](o.Room), written: map[bucket]int{},
		news: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{})}
	l.switches.Store(&o.Switches)
	go l.run()
	return l
}

// Close writes what waits, and ends. Out is the caller's.
func (l *Log) Close() {
	l.close.Do(func() { close(l.stop) })
	<-l.done
}

// Set changes what is written from now on.
func (l *Log) Set(s Switches) { l.switches.Store(&s) }

// Switches are those that hold.
func (l *Log) Switches() Switches { return *l.switches.Load() }

// Stats counts.
func (l *Log) Stats() Stats {
	return Stats{Written: l.counts.written.Load(), Limited: l.counts.limited.Load(), Lost: l.counts.lost.Load(), Failed: l.counts.failed.Load()}
}

// Put hands an entry over, if such are written. The entry stays the caller's.
func (l *Log) Put(e *Entry) {
	if !l.wants(e) {
		return
	}
	if !l.ring.Put(e) {
		l.counts.lost.Add(1)
		return
	}
	select {
	case l.news <- struct{}{}:
	default:
	}
}

func (l *Log) wants(e *Entry) bool {
	s := l.switches.Load()
	switch refused := !e.Allowed || e.DryRun; {
	case e.Between && refused:
		return s.ContainersDenied
	case e.Between:
		return s.ContainersAllowed
	case refused:
		return s.Denied
	}
	return s.Allowed || e.ByRule
}

func (l *Log) run() {
	defer close(l.done)
	for ended := false; !ended; {
		select {
		case <-l.news:
		case <-l.stop:
			ended = true
		}
		for e := (Entry{}); l.ring.Take(&e); {
			l.write(&e)
		}
	}
}

func (l *Log) write(e *Entry) {
	now := l.opt.Now()
	if !l.mayWrite(now, e) {
		l.counts.limited.Add(1)
		return
	}
	line, err := l.line(now, e)
	if err == nil {
		_, err = l.opt.Out.Write(line)
	}
	if err != nil {
		l.counts.failed.Add(1)
		return
	}
	l.counts.written.Add(1)
}

// mayWrite holds a container to its share. Of accepted connections there is one line
// each, as many as there are.
func (l *Log) mayWrite(now time.Time, e *Entry) bool {
	b := bucket{between: e.Between, denied: !e.Allowed || e.DryRun}
	if e.Own != nil {
		b.container = e.Own.Container
	}
	limit := l.opt.Denied
	if !b.denied {
		if e.Protocol != "udp" {
			return true
		}
		limit = l.opt.AcceptedUDP
	}
	if second := now.Unix(); second != l.second {
		l.second = second
		clear(l.written)
	}
	if l.written[b] >= limit {
		return false
	}
	l.written[b]++
	return true
}
