package server

import (
	"net"
	"net/http"
	"sync"
	"time"
)

// silentGrace is how long a connection may go without its first request when the server
// ends. net/http's own Shutdown gives it five seconds, though clients open connections
// that they never use: one that dials for a request takes another that is free by then.
const silentGrace = 250 * time.Millisecond

// silent is the connections of a server that have not brought a request yet.
type silent struct {
	mu    sync.Mutex // guards conns
	conns map[net.Conn]struct{}
}

// note is the server's ConnState.
func (s *silent) note(c net.Conn, state http.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if state == http.StateNew {
		s.conns[c] = struct{}{}
	} else {
		delete(s.conns, c)
	}
}

// close ends those that are there.
func (s *silent) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		_ = c.Close() // its goroutine hears of it, and notes it
	}
}
