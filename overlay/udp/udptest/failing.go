package udptest

import (
	"sync/atomic"
	"syscall"

	"tulle/overlay/udp"
)

// Failing is a socket of which the first reads end with an error that passes.
type Failing struct {
	udp.Conn
	Left atomic.Int32 // reads that still fail; below 0 once one did not
}

// Receive implements udp.Conn.
func (f *Failing) Receive(batch []udp.Message) (int, error) {
	if f.Left.Add(-1) >= 0 {
		return 0, syscall.ENOMEM
	}
	return f.Conn.Receive(batch)
}
