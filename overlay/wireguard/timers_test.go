package wireguard

import (
	"testing"
	"time"
)

func TestWhatIsDue(t *testing.T) {
	const s = int64(time.Second)
	for _, c := range []struct {
		name string
		m    moments
		now  int64
		want deed
	}{
		{"nothing happened", moments{}, 1000 * s, 0},
		{"an answer may still come", moments{timetable: timetable{begun: 10 * s, retry: 15 * s}}, 15*s - 1, 0},
		{"no answer came", moments{timetable: timetable{begun: 10 * s, retry: 15 * s}}, 15 * s, retry},
		{"nor did any of 18 before", moments{timetable: timetable{retry: 15 * s, attempts: maxAttempts}}, 15 * s, retry},
		{"one more and no more", moments{timetable: timetable{retry: 15 * s, attempts: maxAttempts + 1}}, 15 * s, giveUp},
		{"data may still be answered", moments{unanswered: 10 * s}, 25*s - 1, 0},
		{"data was not answered", moments{unanswered: 10 * s}, 25 * s, refresh},
		{"a reply may still go", moments{owed: 10 * s}, 20*s - 1, 0},
		{"the peer waits for a word", moments{owed: 10 * s}, 20 * s, keepalive},
		{"keys may still be of use", moments{timetable: timetable{derived: 10 * s}}, 550*s - 1, 0},
		{"nobody renewed the keys", moments{timetable: timetable{derived: 10 * s}}, 550 * s, forget},
		{"all at once", moments{timetable: timetable{retry: s, derived: s}, unanswered: s, owed: s}, 1000 * s, retry | refresh | keepalive | forget},
	} {
		if got := c.m.due(c.now); got != c.want {
			t.Errorf("%s: %b, want %b", c.name, got, c.want)
		}
	}
}

func TestAgeOfASession(t *testing.T) {
	const s = int64(time.Second)
	const made = 1000 * s
	for _, c := range []struct {
		after            int64
		begun, responded age
	}{
		{0, fresh, fresh},
		{120*s - 1, fresh, fresh},
		{120 * s, stale, fresh},
		{165*s - 1, stale, fresh},
		{165 * s, lastMinute, fresh},
		{180*s - 1, lastMinute, fresh},
		{180 * s, dead, dead},
	} {
		if got := ageOf(made, made+c.after, true); got != c.begun {
			t.Errorf("%v after it was begun here: %d, want %d", time.Duration(c.after), got, c.begun)
		}
		if got := ageOf(made, made+c.after, false); got != c.responded {
			t.Errorf("%v after it was begun there: %d, want %d", time.Duration(c.after), got, c.responded)
		}
	}
}
