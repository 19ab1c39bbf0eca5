package main

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// What the listener was told once holds for each of its connections.
func TestKeepAlivesAreInherited(t *testing.T) {
	l, err := listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []struct {
		name                string
		level, option, want int
	}{
		{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{"TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepAliveSeconds},
		{"TCP_KEEPINTVL", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, keepAliveSeconds},
		{"TCP_KEEPCNT", unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepAliveProbes},
		{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
	} {
		var got int
		if cerr := raw.Control(func(fd uintptr) { got, err = unix.GetsockoptInt(int(fd), o.level, o.option) }); cerr != nil || err != nil || got != o.want {
			t.Errorf("%s is %d, want %d: %v, %v", o.name, got, o.want, cerr, err)
		}
	}
}

func TestGOGCAloneSaysHowOften(t *testing.T) {
	if n := len(ballast(func(string) string { return "" })); n != spare {
		t.Errorf("%d bytes of ballast, want %d", n, spare)
	}
	if ballast(func(string) string { return "100" }) != nil {
		t.Error("ballast beside a GOGC that is set")
	}
}
