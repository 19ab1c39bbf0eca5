package main

import (
	"strings"
	"testing"
	"time"

	"tulle/overlay/control"
	"tulle/policy/api"
)

// What a rotation says, each thing once: above all which peers nobody tells.
func TestRotationIsTold(t *testing.T) {
	until := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	keys := control.Rotation{Old: api.TunnelKey{1}, New: api.TunnelKey{2}, Since: until}
	state := func(step control.RotationStep, change func(*control.Rotation)) control.Rotation {
		s := keys
		s.Step = step
		if change != nil {
			change(&s)
		}
		return s
	}
	static := func(s *control.Rotation) { s.Static, s.Until = []string{"wg-7"}, until }
	var out strings.Builder
	var before control.Rotation
	for _, s := range []control.Rotation{
		{Step: control.RotationBegins, Joined: true, Since: until},
		state(control.RotationTells, static),
		state(control.RotationTells, static), // no news
		state(control.RotationMoves, func(s *control.Rotation) { static(s); s.Waiting = []string{"cell-2", "wg-7"} }),
		state(control.RotationMoves, static),
		state(control.RotationPublishes, static),
		state(control.RotationDone, nil),
	} {
		tellRotation(&out, before, s)
		before = s
	}
	want := `a rotation is under way since 2026-01-02 03:04:05; this follows it
the key AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= is replaced by AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
ATTENTION: nobody tells peer wg-7, which was entered by hand: give it this cell's new key in its own configuration, now:
  PublicKey = AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
both keys are published; waiting until every cell has them, until 03:04:05 at most
the new key is in use; waiting for peers that use the old one, until 03:04:05 at most: cell-2, wg-7
the new key is in use, and no peer uses the old one
the new key is published alone; waiting until every cell has that, until 03:04:05 at most
done: the old key is forgotten
`
	if out.String() != want {
		t.Errorf("it says\n%s\nwant\n%s", out.String(), want)
	}

	// What went too fast to be seen is told all the same.
	out.Reset()
	tellRotation(&out, state(control.RotationBegins, nil), state(control.RotationDone, nil))
	if want := "both keys are published\nthe new key is in use\nthe new key is published alone\ndone: the old key is forgotten\n"; out.String() != want {
		t.Errorf("it says\n%s\nwant\n%s", out.String(), want)
	}
}
