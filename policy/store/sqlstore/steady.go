package sqlstore

import (
	"context"
	"sync"
	"time"
)

// A machine's clock is set now and then, by hours or years. A lease must not end,
// nor last, for that: it was given for a time that passes, not until a date. So
// where the database has no clock of its own, leases are counted by a clock that
// starts with the machine's and that nobody sets. When the machine's has been set,
// the ends that are stored are moved along, so that a server that starts later
// finds them right.

// steady is that clock.
type steady struct {
	elapsed func() time.Duration

	mu   sync.Mutex // guards zero
	zero time.Time  // its time when elapsed was 0
}

func (s *steady) now() time.Time { return s.start().Add(s.elapsed()) }

func (s *steady) start() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.zero
}

func (s *steady) setStart(zero time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.zero = zero
}

// slack is how far the machine's clock may be off before the ends are moved: it
// is disciplined all the time, and that is not worth a write.
const slack = 2 * time.Second

// leaseTime is the time that leases are counted by, where now is the other one.
func (d *db) leaseTime(now time.Time) time.Time {
	if d.steady == nil {
		return now
	}
	return d.steady.now()
}

func (t *tx) leaseNow() time.Time { return t.db.leaseTime(t.now) }

// followWall brings the two clocks together when the machine's has been set. The
// time that each lease has left stays as it is.
func (d *db) followWall(ctx context.Context) error {
	if d.steady == nil {
		return nil
	}
	zero := d.steady.start()
	jump := func() time.Duration { return d.options.Now().Sub(zero.Add(d.options.Elapsed())) }
	if by := jump(); by < slack && by > -slack {
		return nil
	}
	_, err := d.write(ctx, "follow the machine's clock, which was set", func(t *tx) error {
		// Run again, it begins where it began the first time.
		by := jump()
		if err := t.exec(`UPDATE cells SET renewed = renewed + ?1, expires = CASE WHEN expires = 0 THEN 0 ELSE expires + ?1 END`, by.Microseconds()); err != nil {
			return err
		}
		d.steady.setStart(zero.Add(by)) // nobody else writes before this is stored
		return nil
	})
	if err != nil {
		d.steady.setStart(zero)
	}
	return err
}
