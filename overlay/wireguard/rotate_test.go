package wireguard

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"tulle/overlay/udp/udptest"
)

func newKey(t *testing.T) PrivateKey {
	t.Helper()
	k, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// meets sets what c knows of other, changed.
func (c *cell) meets(other *cell, change func(*Peer)) {
	c.t.Helper()
	p := other.peer()
	change(&p)
	if err := c.tunnel.Set(other.name, p); err != nil {
		c.t.Fatal(err)
	}
}

// speak sends both ways and waits for both.
func speak(a, b *cell) {
	a.t.Helper()
	a.send(b, "there")
	b.expect(a, "there")
	b.send(a, "and back")
	a.expect(b, "and back")
}

// session waits until c seals for the other in a session of that kind.
func (c *cell) session(other *cell, what string, is func(Session) bool) {
	c.t.Helper()
	deadline := time.After(patience)
	for {
		if s, there := c.tunnel.Session(other.name); there && is(s) {
			return
		}
		select {
		case <-c.news:
		case <-deadline:
			c.t.Fatal("never true: " + what)
		}
	}
}

// A cell changes from one key to another while frames flow, and none is lost: first
// it has both, then its peers know of both, then it begins with the new one, then the
// old one is nobody's any more.
func TestKeyIsRotatedWithoutLoss(t *testing.T) {
	_, a, b := pair(t)
	speak(a, b)
	n := 0
	flow := func() {
		t.Helper()
		for range 10 {
			n++
			a.send(b, fmt.Sprint("frame ", n))
			b.send(a, fmt.Sprint("answer ", n))
			b.expect(a, fmt.Sprint("frame ", n))
			a.expect(b, fmt.Sprint("answer ", n))
		}
	}
	old, next := a.key, newKey(t)
	set := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	flow()
	set(a.tunnel.SetKeys(old, next))
	flow()
	later(6*time.Second, a, b) // no handshake follows another at once
	b.meets(a, func(p *Peer) { p.Also = next.Public() })
	flow()
	b.session(a, "b's session is of a's new key", func(s Session) bool { return s.Remote == next.Public() })
	flow()
	set(a.tunnel.SetKeys(next, old))
	flow()
	b.meets(a, func(p *Peer) { p.Key, p.Also = next.Public(), old.Public() })
	flow()
	before := a.made.Load() + b.made.Load()
	set(a.tunnel.SetKeys(next))
	flow()
	b.meets(a, func(p *Peer) { p.Key = next.Public() })
	flow()
	if after := a.made.Load() + b.made.Load(); after != before {
		t.Errorf("%d more handshakes when the old key went: the session should have been there", after-before)
	}
	a.session(b, "a's session is of its new key", func(s Session) bool { return s.Local == next.Public() })
}

// What a taken key made ends, on either side, and a key that is left makes anew.
func TestTakenKeyEndsItsSession(t *testing.T) {
	_, a, b := pair(t)
	next := newKey(t)
	speak(a, b)
	// The peer's.
	b.meets(a, func(p *Peer) { p.Key = next.Public() })
	if _, there := b.tunnel.Session(a.name); there {
		t.Error("b still seals for a's old key")
	}
	a.send(b, "under the old key")
	if err := a.tunnel.SetKeys(next); err != nil {
		t.Fatal(err)
	}
	if _, there := a.tunnel.Session(b.name); there {
		t.Error("a still seals with its old key")
	}
	later(6*time.Second, a, b)
	a.send(b, "under the new key")
	b.expect(a, "under the new key")
}

// Where the peer does not have its second key yet, the first one serves.
func TestSecondKeyThatThePeerHasNot(t *testing.T) {
	_, a, b := pair(t)
	b.meets(a, func(p *Peer) { p.Also = newKey(t).Public() })
	b.send(a, "to whichever key answers")
	later(6*time.Second, a, b)
	a.expect(b, "to whichever key answers")
	b.session(a, "the session is of the first key", func(s Session) bool { return s.Remote == a.key.Public() })
}

// Each key has its turn too where there is always something to send, each packet of
// which has the handshakes counted anew.
func TestSecondKeyIsTriedUnderTraffic(t *testing.T) {
	_, a, b := pair(t)
	old := newKey(t)
	b.meets(a, func(p *Peer) { p.Key, p.Also = old.Public(), a.key.Public() })
	for range 10 {
		for range 12 {
			b.send(a, "to whichever key answers")
			later(500*time.Millisecond, a, b)
		}
		if s, there := b.tunnel.Session(a.name); there {
			if s.Remote != a.key.Public() {
				t.Errorf("the session is of %s, want the key that a has", s.Remote)
			}
			return
		}
	}
	t.Error("no session in 60 s: the key that a has is never tried")
}

func TestSetKeysRefusesWhatIsAnothers(t *testing.T) {
	_, a, b := pair(t)
	if err := a.tunnel.SetKeys(b.key); !errors.Is(err, ErrOwnKey) {
		t.Errorf("the key of a peer: %v, want %v", err, ErrOwnKey)
	}
	if err := a.tunnel.SetKeys(a.key, PrivateKey{}); !errors.Is(err, ErrOwnKey) {
		t.Errorf("no key: %v, want %v", err, ErrOwnKey)
	}
	b.meets(a, func(p *Peer) {}) // unchanged
	p := b.peer()
	p.Also = a.key.Public()
	if err := a.tunnel.Set(b.name, p); !errors.Is(err, ErrKey) {
		t.Errorf("the own key as a peer's second: %v, want %v", err, ErrKey)
	}
	p.Also, p.PSK = PublicKey{}, make([]PresharedKey, MaxPSK+1)
	if err := a.tunnel.Set(b.name, p); !errors.Is(err, ErrPSK) {
		t.Errorf("three preshared keys: %v, want %v", err, ErrPSK)
	}
}

func psks(keys ...PresharedKey) func(*Peer) { return func(p *Peer) { p.PSK = keys } }

// Two cells with one preshared key meet, with different ones they do not.
func TestPresharedKey(t *testing.T) {
	net := udptest.New()
	a, b, c := newCell(t, net, 1), newCell(t, net, 2), newCell(t, net, 3)
	one, two := PresharedKey{1}, PresharedKey{2}
	a.meets(b, psks(one))
	b.meets(a, psks(one))
	b.meets(c, psks(one))
	c.meets(b, psks(two))
	speak(a, b)
	a.session(b, "with the preshared key", func(s Session) bool { return s.PSK == one })
	c.send(b, "with another one")
	b.nothing(a)
	if _, there := c.tunnel.Session(b.name); there {
		t.Error("c has a session")
	}
}

// A preshared key changes at one end before the other, whoever begins: as long as the
// first of a list is on the other's, they meet.
func TestPresharedKeysWhileTheyChange(t *testing.T) {
	old, new := PresharedKey{1}, PresharedKey{2}
	for _, c := range []struct {
		name string
		a, b []PresharedKey
		want PresharedKey // when a begins: b's first
	}{
		{"a has the new one", []PresharedKey{old, new}, []PresharedKey{old}, old},
		{"both have it", []PresharedKey{old, new}, []PresharedKey{old, new}, old},
		{"b knows that a has it", []PresharedKey{old, new}, []PresharedKey{new, old}, new},
		{"both know", []PresharedKey{new, old}, []PresharedKey{new, old}, new},
		{"b is done with the old one", []PresharedKey{new, old}, []PresharedKey{new}, new},
		{"from none to the first", []PresharedKey{{}, new}, nil, PresharedKey{}},
		{"from none, known", []PresharedKey{{}, new}, []PresharedKey{new, {}}, new},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, turned := range []bool{false, true} {
				net := udptest.New()
				a, b := newCell(t, net, 1), newCell(t, net, 2)
				a.meets(b, psks(c.a...))
				b.meets(a, psks(c.b...))
				want := c.want
				if turned {
					a, b = b, a
					if want = (PresharedKey{}); len(c.a) > 0 {
						want = c.a[0]
					}
				}
				speak(a, b)
				a.session(b, "the responder's first", func(s Session) bool { return s.PSK == want })
			}
		})
	}
}

func TestPresharedKeyIsNotPrinted(t *testing.T) {
	k := PresharedKey{0xab, 0xcd}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
		if got := fmt.Sprintf(verb, k); got != "(preshared key)" {
			t.Errorf("%s shows %s", verb, got)
		}
		if got := fmt.Sprintf(verb, []PresharedKey{k}); strings.Count(got, "(preshared key)") != 1 || strings.Contains(got, "171") || strings.Contains(got, "ab") {
			t.Errorf("%s of a list shows %s", verb, got)
		}
	}
}
