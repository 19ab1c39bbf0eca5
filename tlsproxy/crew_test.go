package tlsproxy

import (
	"context"
	"testing"
	"time"
)

// A goroutine that is done takes what comes next, and leaves when the proxy ends.
func TestWorkersAreUsedAgain(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c := newCrew(ctx)
	waiting := func(want int) {
		t.Helper()
		for deadline := time.Now().Add(patience); len(c.idle) != want; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d goroutines wait, want %d", len(c.idle), want)
			}
		}
	}
	for range 3 {
		began, end := make(chan struct{}), make(chan struct{})
		c.run(func() { close(began); <-end })
		<-began
		waiting(0) // a new goroutine would have left the one of before waiting
		close(end)
		waiting(1)
	}
	release := make(chan struct{})
	for range 2 * idleWorkers {
		c.run(func() { <-release })
	}
	close(release)
	waiting(idleWorkers)
}
