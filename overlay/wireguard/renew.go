package wireguard

// Renew begins another session with a peer that has one, so that what was changed of
// its preshared keys counts now and not with the next of its handshakes. The present
// session goes on until there is another.
func (t *Tunnel) Renew(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.peers[name]; p != nil && !t.closed.Load() && p.current.Load().lives() {
		p.attempts = 0
		t.beginLocked(p, t.clock())
	}
}
