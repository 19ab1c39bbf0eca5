package pmtu

import (
	"math/rand/v2"
	"testing"
)

// path answers probes up to limit bytes; silent ones not at all.
type path struct {
	limit  int
	silent bool
	lose   func() bool
	sent   int
}

// carry gives the search the answers to what it sends, and to what follows from
// them, as on a path whose round trip is short against a tick.
func (p *path) carry(s *Search, sizes []int) {
	queue := append([]int(nil), sizes...)
	for len(queue) > 0 {
		size := queue[0]
		queue = queue[1:]
		p.sent++
		if p.silent || size > p.limit || p.lose != nil && p.lose() {
			continue
		}
		queue = append(queue, s.Answer(size)...)
	}
}

func (p *path) tick(s *Search, n int) {
	for range n {
		p.carry(s, s.Tick())
	}
}

func TestEveryPathIsFound(t *testing.T) {
	for limit := Base; limit <= 1460; limit++ {
		s, p := New(1450), &path{limit: limit}
		p.tick(s, 1)
		// One tick and two round trips are enough to be of use.
		if m := s.MTU(); m > limit || m < min(limit, 1450)-step {
			t.Fatalf("path of %d: %d after the first round", limit, m)
		}
		p.tick(s, 3*Patience)
		if m := s.MTU(); m > limit || m <= min(limit, 1450)-fine {
			t.Fatalf("path of %d: settled at %d", limit, m)
		}
		if p.sent > 100 {
			t.Fatalf("path of %d: %d probes", limit, p.sent)
		}
	}
}

func TestGoodPathCostsTwoProbes(t *testing.T) {
	s, p := New(1450), &path{limit: 1450}
	p.tick(s, VerifyEvery-1)
	if s.MTU() != 1450 || p.sent != 2 {
		t.Errorf("MTU %d, %d probes", s.MTU(), p.sent)
	}
}

func TestPeerThatAnswersNoProbesKeepsTheWholePath(t *testing.T) {
	s, p := New(1450), &path{silent: true}
	p.tick(s, 200)
	if s.MTU() != 1450 {
		t.Errorf("MTU %d", s.MTU())
	}
	if p.sent > 80 {
		t.Errorf("%d probes in 200 ticks", p.sent)
	}
}

func TestPathThatChanges(t *testing.T) {
	s, p := New(1450), &path{limit: 1450}
	p.tick(s, 3)
	p.limit = 1246
	p.tick(s, VerifyEvery+Patience+1)
	if m := s.MTU(); m > 1246 || m < 1246-step {
		t.Errorf("after the path shrank: %d", m)
	}
	p.limit = 1450
	p.tick(s, RaiseEvery+3*Patience)
	if m := s.MTU(); m != 1450 {
		t.Errorf("after the path healed: %d", m)
	}
	// An outage of the peer says nothing about sizes.
	p.silent = true
	p.tick(s, 100)
	p.silent = false
	p.tick(s, VerifyEvery+1)
	if m := s.MTU(); m != 1450 {
		t.Errorf("after an outage: %d", m)
	}
}

func TestLossIsNotAPath(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		s, p := New(1450), &path{limit: 1450, lose: func() bool { return r.IntN(10) < 2 }}
		p.tick(s, 2*RaiseEvery)
		p.lose = nil
		p.tick(s, RaiseEvery+3*Patience)
		if m := s.MTU(); m != 1450 {
			t.Fatalf("seed %d: %d", seed, m)
		}
		p.limit = 1000
		p.lose = func() bool { return r.IntN(10) < 2 }
		p.tick(s, VerifyEvery+4*Patience)
		if m := s.MTU(); m > 1000 {
			t.Fatalf("seed %d: path of 1000: %d", seed, m)
		}
	}
}

func TestAnswerToNothing(t *testing.T) {
	s := New(1450)
	s.Answer(9000)
	if s.MTU() != 1450 {
		t.Errorf("MTU %d", s.MTU())
	}
}
