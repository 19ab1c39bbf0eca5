package wireguard

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tulle/overlay/udp/udptest"
)

// typeOf is a datagram's.
func typeOf(d *udptest.Datagram) uint32 { return binary.LittleEndian.Uint32(d.Payload) }

// Each of the messages that make a session may be lost. What waits for the session
// arrives all the same, when the time for an answer is over.
func TestLostHandshakeMessages(t *testing.T) {
	for _, c := range []struct {
		name string
		kind uint32
	}{{"initiation", typeInitiation}, {"response", typeResponse}, {"the first of the session", typeTransport}} {
		t.Run(c.name, func(t *testing.T) {
			net, a, b := pair(t)
			lost := make(chan struct{}, 1)
			var once atomic.Bool
			net.SetHook(func(d *udptest.Datagram) udptest.Fate {
				if typeOf(d) == c.kind && !once.Swap(true) {
					lost <- struct{}{}
					return udptest.Drop
				}
				return udptest.Deliver
			})
			a.send(b, "first")
			<-lost
			if c.kind == typeTransport { // which was the frame itself
				a.send(b, "first")
			}
			later(6*time.Second, a, b)
			b.expect(a, "first")
			b.send(a, "back")
			a.expect(b, "back")
		})
	}
}

// A responder that hears nothing in the session it answered for begins one itself.
func TestResponderIsNotLeftWaiting(t *testing.T) {
	net, a, b := pair(t)
	var deaf atomic.Bool
	lost := make(chan struct{}, 64)
	deaf.Store(true)
	net.SetHook(func(d *udptest.Datagram) udptest.Fate {
		if deaf.Load() && d.From == a.conn.Local() && typeOf(d) == typeTransport {
			lost <- struct{}{}
			return udptest.Drop
		}
		return udptest.Deliver
	})
	a.tunnel.Begin(b.name)
	<-lost // a has a session, b does not know
	b.send(a, "waiting")
	deaf.Store(false)
	later(6*time.Second, a, b)
	a.expect(b, "waiting")
	a.send(b, "and the other way")
	b.expect(a, "and the other way")
}

// Two that begin at the same time both succeed.
func TestHandshakesThatCross(t *testing.T) {
	net, a, b := pair(t)
	net.SetHook(func(d *udptest.Datagram) udptest.Fate {
		if typeOf(d) == typeInitiation {
			return udptest.Hold
		}
		return udptest.Deliver
	})
	a.send(b, "from a")
	b.send(a, "from b")
	net.SetHook(nil)
	net.Release()
	for _, c := range []struct{ to, from *cell }{{b, a}, {a, b}} {
		c.to.expect(c.from, "from "+string(c.from.name[len(c.from.name)-1]-'1'+'a'))
	}
	for range 3 {
		speak(a, b)
	}
}

// One that the peer began is waited for as long as one of this end's own, and that is no
// attempt after the other: what waits for a session is not given up.
func TestPeersHandshakeThatComesToNothing(t *testing.T) {
	net, a, b := pair(t)
	var lose atomic.Bool
	lose.Store(true)
	net.SetHook(func(d *udptest.Datagram) udptest.Fate {
		if lose.Load() && d.From == a.conn.Local() {
			return udptest.Drop
		}
		return udptest.Deliver
	})
	a.send(b, "waiting")
	later(4900*time.Millisecond, a, b)
	b.send(a, "too") // which a answers, but b does not hear
	for range 48 {
		later(100*time.Millisecond, a)
	}
	a.tunnel.mu.Lock()
	p := a.tunnel.peers[b.name]
	staged, attempts := len(p.staged), p.attempts
	a.tunnel.mu.Unlock()
	if staged != 1 || attempts > 1 {
		t.Errorf("%d frames wait, after %d attempts", staged, attempts)
	}
	lose.Store(false)
	for range 10 {
		later(100*time.Millisecond, a)
	}
	b.expect(a, "waiting")
	a.expect(b, "too")
}

// Over ten minutes of frames in both directions the session is renewed every two,
// and not one frame is lost or comes out of turn.
func TestRekeyUnderTraffic(t *testing.T) {
	_, a, b := pair(t)
	speak(a, b)
	for second := range 600 {
		later(time.Second, a, b)
		for i := range 3 {
			body := fmt.Sprintf("second %d, frame %d", second, i)
			a.send(b, body)
			b.send(a, body)
		}
		for i := range 3 {
			body := fmt.Sprintf("second %d, frame %d", second, i)
			b.expect(a, body)
			a.expect(b, body)
		}
	}
	if n := a.made.Load(); n < 5 || n > 7 {
		t.Errorf("%d sessions in ten minutes, want one every two", n)
	}
	if n := a.tunnel.inUse(); n > 3 {
		t.Errorf("%d indices are in use: old sessions were not forgotten", n)
	}
}

// Who began a session and only receives in it renews it before it ends.
func TestReceiverRenews(t *testing.T) {
	_, a, b := pair(t)
	speak(a, b)
	for second := range 400 {
		later(time.Second, a, b)
		b.send(a, fmt.Sprint(second))
		a.expect(b, fmt.Sprint(second))
	}
	if n := a.made.Load(); n != 3 {
		t.Errorf("%d sessions in 400 s, want one every %v", n, time.Duration(lastMinuteAfter))
	}
}

// A network that loses, repeats and turns round whatever it likes, handshakes too:
// what arrives was sent, and arrives once.
func TestBadNetwork(t *testing.T) {
	net, a, b := pair(t)
	r := rand.New(rand.NewPCG(3, 4))
	net.SetHook(func(d *udptest.Datagram) udptest.Fate {
		switch n := r.IntN(100); {
		case n < 20:
			return udptest.Drop
		case n < 35:
			return udptest.Duplicate
		case n < 60:
			return udptest.Hold
		}
		return udptest.Deliver
	})
	const frames = 3000
	seen := map[string]int{}
	take := func(c *cell) {
		for {
			select {
			case f := <-c.got:
				seen[f.body]++
			default:
				return
			}
		}
	}
	for i := range frames {
		a.send(b, fmt.Sprint("to b: ", i))
		b.send(a, fmt.Sprint("to a: ", i))
		if i%20 == 0 {
			if held := net.Held(); held > 0 {
				net.Release(r.Perm(held)...)
			}
			later(time.Second, a, b)
		}
		take(a)
		take(b)
	}
	net.SetHook(nil)
	net.Release()
	// Whatever the state that this left them in, it mends itself.
	for range 20 {
		later(time.Second, a, b)
	}
	take(a)
	take(b)
	speak(a, b)
	for body, n := range seen {
		if n != 1 || !strings.HasPrefix(body, "to ") {
			t.Errorf("%q arrived %d times", body, n)
		}
	}
	if len(seen) < frames/2 {
		t.Errorf("%d of %d frames arrived", len(seen), 2*frames)
	}
}
