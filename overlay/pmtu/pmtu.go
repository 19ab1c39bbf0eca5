// Package pmtu finds out which packets a path carries, without believing anybody
// on it: nobody there need say that a packet was too big. It is the search of RFC
// 8899 (datagram packetization layer path MTU discovery), with one difference: the
// candidates of a round are sent together, largest first, so that one round trip
// settles what a search by halves takes ten for.
//
// A [Search] decides what to send and what an answer means. It sends nothing, reads
// no clock and is used by one goroutine at a time; ticks are its caller's, about one
// a second.
package pmtu

// Numbers of the search, in ticks.
const (
	// Patience is how many probes of a size must be lost, in as many ticks, while
	// smaller ones are answered, before the size counts as too big.
	Patience = 3
	// VerifyEvery is how often a size in use is looked at again, RaiseEvery how often
	// a larger one is tried (RFC 8899 section 5.1.1 has 600 s; a path that heals
	// should not stay slow for that long).
	VerifyEvery = 10
	RaiseEvery  = 120
	// Base is a size that every path carries (RFC 8899 section 5.1.2 has 1,200 for
	// IPv6; what a tunnel leaves of IPv4's paths is less).
	Base = 512
	// step and fine are the distances of the candidates of the two rounds.
	step = 64
	fine = 8
	// eager is how many ticks an unproven path is probed in each tick.
	eager = 5
)

type phase uint8

const (
	// unproven: nothing was answered yet. A peer may answer no probes at all, so
	// until one is answered the path counts as good.
	unproven phase = iota
	settled
	coarse // the first round of a search is out
	finer  // the second
)

// Search is what is known of one path. The zero Search is not usable; see [New].
type Search struct {
	most  int // the largest size that is wanted
	good  int // the largest that was answered
	bad   int // the smallest that is taken for too big; most+1: none
	phase phase
	lost  int  // ticks in which the size that was asked for was not answered
	since int  // ticks since the last proof of good
	raise int  // ticks since something larger was tried
	tries int  // ticks unproven
	base  bool // anything was answered since the search began
	out   []int
}

// New begins a search for up to most bytes.
func New(most int) *Search { return &Search{most: most, bad: most + 1} }

// MTU is the largest packet that may be sent.
func (s *Search) MTU() int {
	if s.phase == unproven || s.good == 0 {
		return s.most
	}
	return s.good
}

// Tick is called once a tick in which the path was used, and gives the sizes to
// probe now; the slice is good until the next call of any method.
func (s *Search) Tick() []int {
	s.out = s.out[:0]
	s.since++
	s.raise++
	switch s.phase {
	case unproven:
		// A peer that answers no probes is asked seldom.
		if s.tries++; s.tries > eager && s.tries%VerifyEvery != 0 {
			return nil
		}
		return s.ask(s.most, Base)
	case settled:
		return s.verify()
	case coarse, finer:
		// What was not answered within a tick is lost, or too big.
		if s.lost++; s.lost < Patience {
			return s.round()
		}
		if !s.base {
			// Nothing comes back at all: that says nothing about sizes.
			s.settle()
			return nil
		}
		s.bad = min(s.bad, s.above())
		return s.narrow()
	}
	return nil
}

// Answer takes note that a probe of size bytes arrived, and gives what to probe at
// once.
func (s *Search) Answer(size int) []int {
	s.out = s.out[:0]
	if size > s.most {
		return nil
	}
	s.base = true
	if size >= s.bad {
		s.bad = s.most + 1 // what was lost was only lost
	}
	if size >= s.good || s.phase == unproven {
		s.good = max(s.good, size)
		s.since = 0
	}
	switch {
	case s.good == s.most:
		s.settle()
	case s.phase == unproven && size <= Base:
		// The largest was sent first and is not back.
		s.phase, s.lost = coarse, 0
		return s.round()
	}
	return nil
}

// verify looks now and then whether the path still is what it was.
func (s *Search) verify() []int {
	if s.good < s.most && s.raise >= RaiseEvery {
		s.raise = 0
		s.bad = s.most + 1
		s.phase, s.lost, s.base = coarse, 0, false
		return s.round()
	}
	if s.since < VerifyEvery {
		return nil
	}
	if s.since < VerifyEvery+Patience {
		return s.ask(s.good)
	}
	// The size in use is lost, again and again.
	s.phase, s.lost, s.base = coarse, 0, false
	s.bad = s.most + 1
	s.good = 0
	return s.round()
}

// round asks for the candidates between what is good and what is bad, largest
// first, and for Base last.
func (s *Search) round() []int {
	d := step
	if s.phase == finer {
		d = fine
	}
	top := min(s.bad-1, s.most)
	s.out = append(s.out, top)
	low := max(s.good, Base)
	for n := low + (top-low-1)/d*d; n > low; n -= d {
		s.out = append(s.out, n)
	}
	return append(s.out, Base)
}

// above is the smallest candidate of the round that was not answered.
func (s *Search) above() int {
	d := step
	if s.phase == finer {
		d = fine
	}
	return min(s.good+d, s.bad)
}

// narrow goes from the coarse round to the fine one, and from there to the end.
func (s *Search) narrow() []int {
	if s.phase == coarse && s.bad-s.good > fine {
		s.phase, s.lost = finer, 0
		return s.round()
	}
	s.settle()
	return nil
}

func (s *Search) settle() {
	s.phase, s.lost, s.since = settled, 0, 0
	if s.good == 0 {
		s.phase = unproven
	}
}

func (s *Search) ask(sizes ...int) []int {
	s.out = append(s.out, sizes...)
	return s.out
}
