package main

import (
	"context"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// toApp reaches the app, which is on this host: an end of it that is gone says so,
// and keepalives would be for nothing.
var toApp = net.Dialer{KeepAlive: -1, FallbackDelay: -1}

// keepAlive is the time of a connection's silence before the first probe, between
// probes, and how many stay without an answer: Go's own.
const (
	keepAliveSeconds = 15
	keepAliveProbes  = 9
)

// listen sets keepalives on the listener, whose connections inherit them: one
// system call there for four at each accept.
func listen(ctx context.Context, address string) (net.Listener, error) {
	lc := net.ListenConfig{KeepAlive: -1, Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		cerr := raw.Control(func(fd uintptr) {
			for _, o := range []struct{ level, option, value int }{
				{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
				{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepAliveSeconds},
				{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, keepAliveSeconds},
				{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepAliveProbes},
			} {
				if err == nil {
					err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), o.level, o.option, o.value))
				}
			}
		})
		if err == nil {
			err = cerr
		}
		return err
	}}
	lc.SetMultipathTCP(false)
	return lc.Listen(ctx, "tcp", address)
}
