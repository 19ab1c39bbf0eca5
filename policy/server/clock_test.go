package server

import (
	"testing"
	"time"
)

func TestSetClockIsNoticed(t *testing.T) {
	var c setClock
	wall, elapsed := time.Unix(1_800_000_000, 0), time.Hour
	for n, step := range []struct{ passed, set, want time.Duration }{
		{0, 0, 0},
		{30 * time.Second, 0, 0},
		{30 * time.Second, time.Second, 0}, // a correction
		{30 * time.Second, 8 * 24 * time.Hour, 8 * 24 * time.Hour},
		{30 * time.Second, 0, 0}, // told once
		{10 * time.Millisecond, -time.Hour, -time.Hour},
		{100 * time.Hour, 0, 0}, // a long time is not a set clock
	} {
		wall, elapsed = wall.Add(step.passed+step.set), elapsed+step.passed
		if got := c.look(wall, elapsed); got != step.want {
			t.Errorf("step %d: %s, want %s", n, got, step.want)
		}
	}
}
