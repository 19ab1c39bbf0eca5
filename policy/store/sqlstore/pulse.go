package sqlstore

import "sync"

// Pulse wakes whoever waits for a change. The zero value is ready for use.
type Pulse struct {
	mu    sync.Mutex // guards what follows
	ch    chan struct{}
	doubt bool // a change may have been stored of which there was no Beat
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
	p.beatLocked()
}

// Doubt is for a commit of this store that ended without an answer: the change may be
// stored by now, or when the database comes to it.
func (p *Pulse) Doubt() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.doubt = true
	p.beatLocked()
}

// Echo is for a change of this store that the database tells of. Each had its Beat
// already, so nobody is woken again, unless one was ever in doubt.
func (p *Pulse) Echo() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.doubt {
		p.beatLocked()
	}
}

func (p *Pulse) beatLocked() {
	if p.ch != nil {
		close(p.ch)
		p.ch = nil
	}
}
