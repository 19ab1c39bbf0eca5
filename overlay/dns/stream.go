package dns

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Of connections (RFC 7766): how long one may be idle, and how many one container
// and all together may have. A container that has too many loses the new one.
const (
	streamIdle      = 10 * time.Second
	streamsOfOne    = 16
	streamsTogether = 1024
)

// streams counts the connections.
type streams struct {
	mu  sync.Mutex // guards what follows
	all int
	of  map[netip.Addr]int
}

func (s *streams) enter(from netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all >= streamsTogether || s.of[from] >= streamsOfOne {
		return false
	}
	if s.of == nil {
		s.of = make(map[netip.Addr]int)
	}
	s.all++
	s.of[from]++
	return true
}

func (s *streams) leave(from netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all--
	if s.of[from]--; s.of[from] == 0 {
		delete(s.of, from)
	}
}

// ServeConn answers what the container at from asks on a connection, one question
// after the other, until it ends, is idle, or the resolver is closed. The
// connection is the resolver's, which closes it.
func (r *Resolver) ServeConn(from netip.Addr, c net.Conn) {
	defer c.Close()
	if !r.streams.enter(from) {
		r.counters.queries.Add(1)
		r.counters.overSource.Add(1)
		return
	}
	defer r.streams.leave(from)
	over := make(chan struct{})
	defer close(over)
	go func() {
		select {
		case <-r.ctx.Done():
			c.Close()
		case <-over:
		}
	}()
	var length [2]byte
	for {
		if c.SetDeadline(time.Now().Add(streamIdle)) != nil {
			return
		}
		if _, err := io.ReadFull(c, length[:]); err != nil {
			return
		}
		n := binary.BigEndian.Uint16(length[:])
		if n > maxQuery {
			r.counters.queries.Add(1)
			r.malformed(from, errTooLong)
			return
		}
		message := make([]byte, n)
		if _, err := io.ReadFull(c, message); err != nil {
			return
		}
		r.counters.queries.Add(1)
		answer := r.answerStream(from, message)
		if answer == nil {
			return // nothing that could be answered: nor can what follows
		}
		if c.SetDeadline(time.Now().Add(streamIdle)) != nil {
			return
		}
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return
		}
	}
}

// answerStream waits for the answer to one question of a connection.
func (r *Resolver) answerStream(from netip.Addr, message []byte) []byte {
	q := query{from: from, message: message, limit: dns.MaxMsgSize, deadline: time.Now().Add(r.patience)}
	answer, ask := r.immediate(q)
	if ask == nil {
		return answer
	}
	return r.outside(q, ask)
}
