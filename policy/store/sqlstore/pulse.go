package sqlstore

import "sync"

// Pulse wakes whoever waits for a change. The zero value is ready for use.
type Pulse struct {
	mu sync.Mutex // guards ch
	ch chan struct{}
}

// Wait returns a channel that is closed at the next Beat.
func (p *Pulse) Wait() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ch == nil {
		p.ch = make(chan struct{})
	}
	return p.ch
}

// Beat wakes all that wait.
func (p *Pulse) Beat() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ch != nil {
		close(p.ch)
		p.ch = nil
	}
}
