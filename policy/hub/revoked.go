package hub

import (
	"fmt"
	"time"
)

// Admit is an error where a credential of the cell that was issued at that time
// has been revoked since. Who opens a watch asks after that again: what is revoked
// later ends the watch, whoever has it, and a good credential opens it anew.
func (h *Hub) Admit(name string, issued time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	at, revoked := h.x.revoked[name]
	if !revoked || issued.After(at) {
		return nil
	}
	return fmt.Errorf("%w on %s", ErrRevoked, at.UTC().Format(time.DateTime))
}

// shutLocked ends the cell's watch because of a revocation.
func (h *Hub) shutLocked(name string) {
	if c := h.cells[name]; c != nil && c.watcher != nil {
		c.watcher.endLocked(ErrRevoked)
	}
}
