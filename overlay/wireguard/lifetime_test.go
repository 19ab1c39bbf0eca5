package wireguard

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"tulle/overlay/udp/udptest"
)

// count counts a's datagrams of a type from now on, all of which are lost if so said.
func count(net *udptest.Network, a *cell, kind uint32, length int, lose *atomic.Bool) *atomic.Int64 {
	n := new(atomic.Int64)
	net.SetHook(func(d *udptest.Datagram) udptest.Fate {
		if d.From == a.conn.Local() && typeOf(d) == kind && (length == 0 || len(d.Payload) == length) {
			n.Add(1)
		}
		if lose != nil && lose.Load() {
			return udptest.Drop
		}
		return udptest.Deliver
	})
	return n
}

const keepaliveLen = transportLen + tagLen

// Who only receives lets the sender know that it is there, 10 s after; then there is
// nothing more to say.
func TestKeepalive(t *testing.T) {
	net, a, b := pair(t)
	speak(a, b)
	later(11*time.Second, a, b) // what speak left to say
	sent := count(net, b, typeTransport, keepaliveLen, nil)
	a.send(b, "are you there")
	b.expect(a, "are you there")
	later(9*time.Second, a, b)
	if n := sent.Load(); n != 0 {
		t.Errorf("%d keepalives after 9 s", n)
	}
	later(2*time.Second, a, b)
	if n := sent.Load(); n != 1 {
		t.Errorf("%d keepalives after 11 s, want 1", n)
	}
	for range 100 {
		later(time.Second, a, b)
	}
	if n := sent.Load(); n != 1 {
		t.Errorf("%d keepalives in all, want 1", n)
	}
}

// Who sends data and hears nothing for 15 s begins anew: the peer may have lost the
// session.
func TestSilenceBeginsAHandshake(t *testing.T) {
	net, a, b := pair(t)
	speak(a, b)
	var lose atomic.Bool
	lose.Store(true)
	begun := count(net, a, typeInitiation, 0, &lose)
	a.send(b, "lost")
	later(14*time.Second, a, b)
	if n := begun.Load(); n != 0 {
		t.Errorf("%d handshakes after 14 s", n)
	}
	later(2*time.Second, a, b)
	if n := begun.Load(); n != 1 {
		t.Errorf("%d handshakes after 16 s, want 1", n)
	}
	lose.Store(false)
	later(6*time.Second, a, b)
	a.send(b, "heard again")
	b.expect(a, "heard again")
}

// A peer that does not answer is asked 20 times in all; then what waits is dropped.
func TestNobodyAnswers(t *testing.T) {
	net, a, b := pair(t)
	var lose atomic.Bool
	lose.Store(true)
	begun := count(net, a, typeInitiation, 0, &lose)
	a.send(b, "too late in the end")
	for range 200 {
		later(time.Second, a, b)
	}
	if n := begun.Load(); n != maxAttempts+2 {
		t.Errorf("%d handshakes begun, want %d", n, maxAttempts+2)
	}
	lose.Store(false)
	a.send(b, "from the beginning")
	b.expect(a, "from the beginning")
}

// Keys that nobody renewed are forgotten after three times their time.
func TestKeysAreForgotten(t *testing.T) {
	_, a, b := pair(t)
	speak(a, b)
	later(11*time.Second, a, b) // they have nothing more to say
	later(rejectAfter, a, b)
	if _, there := a.tunnel.Session(b.name); there {
		t.Error("there is a session after 180 s")
	}
	later(forgetAfter-rejectAfter-int64(11*time.Second), a, b)
	for _, c := range []*cell{a, b} {
		if n := c.tunnel.inUse(); n != 0 {
			t.Errorf("%s has %d indices in use", c.name, n)
		}
	}
	later(6*time.Second, a, b)
	speak(a, b)
}

// A session has only so many numbers: long before the last one a new session is
// made, and the last ones are not used.
func TestNumbersOfASession(t *testing.T) {
	_, a, b := pair(t)
	speak(a, b)
	later(6*time.Second, a, b)
	s := a.tunnel.peers[b.name].current.Load()
	s.counter.Store(rekeyAfterMessages)
	a.send(b, "many")
	b.expect(a, "many")
	a.session(b, "another session", func(now Session) bool { return a.made.Load() == 2 })

	later(6*time.Second, a, b)
	s = a.tunnel.peers[b.name].current.Load()
	s.counter.Store(rejectAfterMessages - 1)
	a.send(b, "all")
	b.expect(a, "all")
	a.session(b, "a third one", func(now Session) bool { return a.made.Load() == 3 })
}

// What waits for a session is bounded, and the newest stay.
func TestWhatWaitsIsBounded(t *testing.T) {
	net, a, b := pair(t)
	net.SetHook(func(d *udptest.Datagram) udptest.Fate { return udptest.Hold })
	const sent = maxStaged + 50
	for i := range sent {
		a.send(b, fmt.Sprint("frame ", i))
	}
	net.SetHook(nil)
	net.Release()
	for i := sent - maxStaged; i < sent; i++ {
		b.expect(a, fmt.Sprint("frame ", i))
	}
	net.SetHook(func(d *udptest.Datagram) udptest.Fate { return udptest.Hold })
	later(rejectAfter, a, b)
	big := make([]byte, 60000)
	for range 20 {
		if err := a.tunnel.Send(b.tunnel.Address(), 0, big, 1000); err != nil {
			t.Fatal(err)
		}
	}
	if n := a.tunnel.peers[b.name].stagedLen; n > maxStagedLen || n < maxStagedLen/2 {
		t.Errorf("%d bytes wait, at most %d may", n, maxStagedLen)
	}
}

// A tunnel that is closed while strangers ask for handshakes closes.
func TestCloseUnderLoad(t *testing.T) {
	net, a, b := pair(t)
	speak(a, b)
	flood(t, net, b.conn.Local(), b.key.Public(), 2*queueLen)
	if err := b.tunnel.Close(); err != nil {
		t.Fatal(err)
	}
	a.send(b, "to nobody")
	if n := b.tunnel.inUse(); n != 0 {
		t.Errorf("%d indices in use after Close", n)
	}
}

// A clock that is set back by years, as one that began wrong, holds nobody up; and what
// the peer has seen is older than what follows.
func TestClockSetBack(t *testing.T) {
	_, a, b := pair(t)
	speak(a, b)
	wall := time.Now()
	a.tunnel.mu.Lock()
	before := a.tunnel.stampLocked()
	a.tunnel.wall = func() time.Time { return wall.AddDate(-100, 0, 0) }
	begun := time.Now()
	for range 1000 {
		s := a.tunnel.stampLocked()
		if !s.After(before) {
			t.Fatalf("%v follows %v", s, before)
		}
		before = s
	}
	if d := time.Since(begun); d > time.Second {
		t.Errorf("a thousand handshakes' times took %v", d)
	}
	a.tunnel.mu.Unlock()
	later(125*time.Second, a, b)
	a.send(b, "which a handshake follows")
	b.expect(a, "which a handshake follows")
	a.session(b, "a new session", func(s Session) bool { return s.Age < 60*time.Second })
}
