package server

import "time"

// setClock notices that the machine's clock was set.
type setClock struct {
	wall    time.Time // when it was looked at last
	elapsed time.Duration
}

// clockSlack is how much the clock may be corrected between two looks: it is
// disciplined all the time.
const clockSlack = 2 * time.Second

// look is by how much the clock was set since it was looked at last; 0: it was
// not. Elapsed is the time since some moment by a clock that nobody sets.
func (c *setClock) look(wall time.Time, elapsed time.Duration) time.Duration {
	wall = wall.Round(0) // what it says, not what passed
	before := *c
	c.wall, c.elapsed = wall, elapsed
	if before.wall.IsZero() {
		return 0
	}
	by := wall.Sub(before.wall) - (elapsed - before.elapsed)
	if by < clockSlack && by > -clockSlack {
		return 0
	}
	return by
}
