package wireguard

import (
	"math/rand/v2"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// Times are nanoseconds since a moment before the tunnel's beginning; 0 is never.
// The data path reads the clock that the last tick has set.
const (
	// resolution is how often timers are looked at.
	resolution = 250 * time.Millisecond

	rekeyAfter    = int64(device.RekeyAfterTime)
	rejectAfter   = int64(device.RejectAfterTime)
	rekeyTimeout  = int64(device.RekeyTimeout)
	keepaliveTime = int64(device.KeepaliveTimeout)
	forgetAfter   = 3 * rejectAfter
	// lastMinuteAfter is when who began a session and only receives in it begins the
	// next one.
	lastMinuteAfter = rejectAfter - keepaliveTime - rekeyTimeout
	// floodTime is how close two handshakes of one peer may follow each other.
	floodTime = int64(device.HandshakeInitationRate)
	// underLoadTime is how long cookies are asked for after there was need.
	underLoadTime = int64(device.UnderLoadAfterTime)

	maxAttempts = device.MaxTimerHandshakes

	rekeyAfterMessages  = uint64(device.RekeyAfterMessages)
	rejectAfterMessages = uint64(device.RejectAfterMessages)
)

// timetable is what a peer's handshakes are timed by.
type timetable struct {
	begun    int64 // when the last handshake message went to the peer
	retry    int64 // when the next one does if no session is made before
	attempts int
	turn     int   // how many were begun since the last session
	derived  int64 // when the last session was made
}

// moments is all that decides what is due for a peer.
type moments struct {
	timetable
	unanswered, owed int64
}

// deed is what is to be done about a peer; several may be.
type deed uint8

const (
	retry     deed = 1 << iota // begin a handshake again
	giveUp                     // no more: what waits for a session is dropped
	refresh                    // begin a handshake, for the peer may have lost the session
	keepalive                  // let the peer know that its data came
	forget                     // no session is of use any more
)

// due is what is to be done now.
func (m *moments) due(now int64) (d deed) {
	if m.retry != 0 && now >= m.retry {
		if m.attempts > maxAttempts {
			d |= giveUp
		} else {
			d |= retry
		}
	}
	if m.unanswered != 0 && now-m.unanswered >= keepaliveTime+rekeyTimeout {
		d |= refresh
	}
	if m.owed != 0 && now-m.owed >= keepaliveTime {
		d |= keepalive
	}
	if m.derived != 0 && now-m.derived >= forgetAfter {
		d |= forget
	}
	return d
}

// age is how far a session is on its way.
type age uint32

const (
	fresh      age = iota
	stale          // who began it begins the next one when sending
	lastMinute     // and when receiving
	dead           // neither seals nor opens
)

func ageOf(made, now int64, initiator bool) age {
	switch d := now - made; {
	case d >= rejectAfter:
		return dead
	case initiator && d >= lastMinuteAfter:
		return lastMinute
	case initiator && d >= rekeyAfter:
		return stale
	}
	return fresh
}

// jitter keeps two that wait for each other from going on doing so.
func jitter() int64 {
	return rand.Int64N(device.RekeyTimeoutJitterMaxMs) * int64(time.Millisecond)
}

// run ticks until Close.
func (t *Tunnel) run() {
	ticker := time.NewTicker(resolution)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			t.tick()
		case <-t.stop:
			return
		}
	}
}

// tick sets the data path's clock and does what is due.
func (t *Tunnel) tick() {
	now := t.clock()
	t.now.Store(now)
	for _, p := range t.dueAt(now) {
		t.attend(p, now)
	}
}

// dueAt lets the sessions of all peers age, and is the peers that something is due for.
func (t *Tunnel) dueAt(now int64) (due []*peer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.peers {
		for _, s := range [...]*session{p.previous, p.current.Load(), p.next} {
			if s == nil {
				continue
			}
			if is := s.ageNow(); is != dead {
				s.age.CompareAndSwap(uint32(is), uint32(ageOf(s.made, now, s.initiator)))
			}
		}
		if m := p.moments(); m.due(now) != 0 {
			due = append(due, p)
		}
	}
	return due
}

func (p *peer) moments() *moments {
	return &moments{p.timetable, p.unanswered.Load(), p.owed.Load()}
}

// attend does what is due for one peer. Each takes the lock by itself: a thousand
// handshakes in a row would keep it from everybody for a third of a second.
func (t *Tunnel) attend(p *peer, now int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if d := p.moments().due(now); d != 0 && !p.gone && !t.closed.Load() {
		t.doLocked(p, d, now)
	}
}

func (t *Tunnel) doLocked(p *peer, d deed, now int64) {
	if d&forget != 0 {
		t.forgetLocked(p)
	}
	if d&giveUp != 0 {
		t.log.Debug("peer does not answer", "peer", p.name, "attempts", p.attempts)
		p.retry = 0
		p.dropStaged()
		t.dropPendingLocked(p)
	}
	if d&refresh != 0 {
		p.unanswered.Store(0)
		p.attempts = 0
		t.beginLocked(p, now)
	}
	if d&retry != 0 {
		p.attempts++
		t.beginLocked(p, now)
	}
	if d&keepalive != 0 {
		more := p.another.Swap(false)
		t.keepaliveLocked(p)
		if more {
			p.owed.Store(now)
		}
	}
}
