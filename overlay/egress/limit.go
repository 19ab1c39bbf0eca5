package egress

import (
	"net/netip"
	"sync"
	"time"
)

// Limits of each container.
type Limits struct {
	// Rate and Burst bound new TCP connections to one destination, address and port:
	// Burst at once, then Rate a second. Rate 0: unbounded.
	Rate, Burst int
	// DryRun: what is beyond Rate is logged and allowed.
	DryRun bool
	// PerDestination is how many conversations may be open with one address and
	// port. 0: as many as there may be in all.
	PerDestination int
	// Open is how many conversations may be open in all; 0: 15,000.
	Open int
	// Answers is how many ICMP errors a container is sent a second; 0: 100.
	Answers int
}

func (l Limits) withDefaults() Limits {
	if l.Burst <= 0 {
		l.Burst = max(1, 10*l.Rate)
	}
	if l.Open <= 0 {
		l.Open = 15000
	}
	if l.PerDestination <= 0 {
		l.PerDestination = l.Open
	}
	if l.Answers <= 0 {
		l.Answers = 100
	}
	return l
}

// limiter holds one container to Limits.
type limiter struct {
	limits *Limits

	mu      sync.Mutex // guards what follows
	open    int
	to      map[netip.AddrPort]int
	buckets map[netip.AddrPort]*bucket
	answers int // left of this second
	second  int64
}

// bucket is full with Burst tokens and gains Rate a second.
type bucket struct {
	tokens float64
	at     time.Time
}

func (l *limiter) init(limits *Limits) {
	l.limits = limits
	l.to, l.buckets = map[netip.AddrPort]int{}, map[netip.AddrPort]*bucket{}
}

// connect asks for one more connection to to; with Allowed it is counted until
// disconnect. dry is called instead of a refusal in a dry run.
func (l *limiter) connect(to netip.AddrPort, now time.Time, dry func()) Verdict {
	l.mu.Lock()
	over := !l.takeLocked(to, now)
	if over && !l.limits.DryRun {
		l.mu.Unlock()
		return RateLimit
	}
	v := l.countLocked(to)
	l.mu.Unlock()
	if over && dry != nil {
		dry()
	}
	return v
}

// converse is connect for datagrams, which no rate bounds.
func (l *limiter) converse(to netip.AddrPort) Verdict {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.countLocked(to)
}

func (l *limiter) countLocked(to netip.AddrPort) Verdict {
	if l.open >= l.limits.Open || l.to[to] >= l.limits.PerDestination {
		return ConnectionLimit
	}
	l.open++
	l.to[to]++
	return Allowed
}

func (l *limiter) takeLocked(to netip.AddrPort, now time.Time) bool {
	if l.limits.Rate <= 0 {
		return true
	}
	b := l.buckets[to]
	if b == nil {
		b = &bucket{tokens: float64(l.limits.Burst), at: now}
		l.buckets[to] = b
	}
	b.refill(now, l.limits)
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

func (b *bucket) refill(now time.Time, l *Limits) {
	if d := now.Sub(b.at); d > 0 {
		b.tokens = min(float64(l.Burst), b.tokens+d.Seconds()*float64(l.Rate))
	}
	b.at = now
}

// disconnect gives back what connect or converse counted.
func (l *limiter) disconnect(to netip.AddrPort) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.to[to]--; l.to[to] <= 0 {
		delete(l.to, to)
	}
}

// answer takes one of this second's ICMP errors.
func (l *limiter) answer() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now().Unix(); now != l.second {
		l.second, l.answers = now, l.limits.Answers
	}
	if l.answers <= 0 {
		return false
	}
	l.answers--
	return true
}

// sweep forgets buckets that are full again.
func (l *limiter) sweep(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for to, b := range l.buckets {
		if b.refill(now, l.limits); b.tokens >= float64(l.limits.Burst) {
			delete(l.buckets, to)
		}
	}
}
