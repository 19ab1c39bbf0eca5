package uaatest

import (
	"io"
	"net/http"
	"sync"
)

// Mood is how a server answers.
type Mood int

// The moods.
const (
	Well    Mood = iota
	Failing      // 500
	Garbage      // 200 with something that is no JSON
	Slow         // accepts, and does not answer until Release
	Down         // closes the connection
	Halfway      // begins an answer, and does not end it until Release
)

// Temper gives a test's server its moods; the zero value is well.
type Temper struct {
	mu      sync.Mutex // guards what follows
	mood    Mood
	release chan struct{} // closed: whoever waits in Slow is served; nil: nobody waits
}

// Be changes the mood.
func (t *Temper) Be(m Mood) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mood = m
}

// Release makes it well, and serves those who wait.
func (t *Temper) Release() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mood = Well
	if t.release != nil {
		close(t.release)
		t.release = nil
	}
}

// Serves says whether the request may be served; if not, it has been dealt with.
func (t *Temper) Serves(w http.ResponseWriter, r *http.Request) bool {
	t.mu.Lock()
	if t.release == nil {
		t.release = make(chan struct{})
	}
	mood, release := t.mood, t.release
	t.mu.Unlock()
	switch mood {
	case Failing:
		w.WriteHeader(http.StatusInternalServerError)
	case Garbage:
		_, _ = io.WriteString(w, "<html>all is well</html>")
	case Slow:
		select {
		case <-r.Context().Done():
		case <-release:
			return true
		}
	case Halfway:
		_, _ = io.WriteString(w, `{"keys":[`)
		_ = http.NewResponseController(w).Flush() // who is gone needs none of it
		select {
		case <-r.Context().Done():
		case <-release:
		}
	case Down:
		panic(http.ErrAbortHandler)
	default:
		return true
	}
	return false
}
