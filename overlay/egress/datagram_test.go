package egress_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tulle/overlay/egress"
	"tulle/policy"
)

func TestUDP(t *testing.T) {
	both(t, func(t *testing.T, fam family) {
		r := newRig(t)
		server := udpServer(t, r.world, at(fam.world, 5000))
		c := r.container(1, anything(t))
		conn := c.udp(at(fam.world, 5000))
		for _, n := range []int{1, 1400, 9000} {
			sent := bytes.Repeat([]byte{byte(n)}, n)
			if _, err := conn.Write(sent); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 65535)
			m, from, err := server.ReadFromUDPAddrPort(b)
			if err != nil || from.Addr() != fam.host || !bytes.Equal(b[:m], sent) {
				t.Fatalf("%d bytes from %v, %v", m, from, err)
			}
			if _, err := server.WriteToUDPAddrPort(b[:m], from); err != nil {
				t.Fatal(err)
			}
			if m, err = conn.Read(b); err != nil || !bytes.Equal(b[:m], sent) {
				t.Fatalf("reply of %d bytes, %v", m, err)
			}
		}
		// The server goes: the container is told.
		server.Close()
		conn.Write([]byte("x"))
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("read %v, want connection refused", err)
		}
		// No rule: told at once.
		c.rules(set(t))
		until(t, "conversation ended", func() bool { return r.e.Stats().Open == 0 })
		conn = c.udp(at(fam.world, 5000))
		conn.Write([]byte("x"))
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("read without a rule: %v, want connection refused", err)
		}
	})
}

// ping sends an echo request from the container and returns the reply.
func (c *ctr) ping(to string, payload []byte, patience time.Duration) ([]byte, error) {
	var conn net.PacketConn
	request := echoRequest(netip.MustParseAddr(to))
	err := c.Do(func() error {
		if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0"), 0); err != nil {
			return err
		}
		domain, proto := unix.AF_INET, unix.IPPROTO_ICMP
		if request == 128 {
			domain, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
		}
		fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, proto)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), "ping")
		defer f.Close()
		conn, err = net.FilePacketConn(f)
		return err
	})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	message := append([]byte{request, 0, 0, 0, 0, 0, 0, 9}, payload...)
	if _, err := conn.WriteTo(message, &net.UDPAddr{IP: net.ParseIP(to)}); err != nil {
		return nil, err
	}
	conn.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 65535)
	n, _, err := conn.ReadFrom(b)
	if err != nil {
		return nil, err
	}
	return b[8:n], nil
}

func echoRequest(to netip.Addr) uint8 {
	if to.Is6() {
		return 128
	}
	return 8
}

func (r *rig) allowPing() {
	r.t.Helper()
	err := r.host.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0"), 0) })
	if err != nil {
		r.t.Fatal(err)
	}
}

func TestPing(t *testing.T) {
	both(t, func(t *testing.T, fam family) {
		r := newRig(t)
		r.allowPing()
		c := r.container(1, set(t, policy.SecurityRule{Protocol: "icmp", Destination: fam.net, Type: int(echoRequest(fam.world)), Code: -1}))
		for _, n := range []int{0, 56, 4000} {
			payload := bytes.Repeat([]byte{5}, n)
			if b, err := c.ping(fam.world.String(), payload, wait); err != nil || !bytes.Equal(b, payload) {
				t.Errorf("%d bytes: reply of %d, %v", n, len(b), err)
			}
		}
		nobody := fam.world.Next().Next()
		// Nobody is there, so nobody answers.
		if b, err := c.ping(nobody.String(), nil, 500*time.Millisecond); err == nil {
			t.Errorf("a reply of %q from nobody", b)
		}
		c.rules(set(t))
		if _, err := c.ping(fam.world.String(), nil, 500*time.Millisecond); err == nil {
			t.Error("a reply without a rule")
		}
		if v := r.e.Stats().Verdicts["no_rule"]; v == 0 {
			t.Error("no refusal was counted")
		}
	})
}

func TestPingWithoutTheRight(t *testing.T) {
	both(t, func(t *testing.T, fam family) {
		r := newRig(t)
		c := r.container(1, anything(t))
		if _, err := c.ping(fam.world.String(), nil, 300*time.Millisecond); err == nil {
			t.Error("a reply though no ping socket can be had")
		}
		if s := r.e.Stats(); s.Failed == 0 || s.Open != 0 {
			t.Errorf("stats %+v, want one failure and nothing open", s)
		}
	})
}

// TestSilence: a datagram conversation that says nothing for half a minute ends, one
// that was answered lives longer, and a TCP connection however long it is silent.
func TestSilence(t *testing.T) {
	var ahead atomic.Int64
	r := newRig(t, func(o *egress.Options) {
		o.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	c := r.container(1, anything(t))
	server, conns := tcpServer(t, r.world, "192.0.2.2:0")
	near, err := c.dial(server.String())
	if err != nil {
		t.Fatal(err)
	}
	far := next(t, conns)
	answering, silent := udpServer(t, r.world, "192.0.2.2:5000"), udpServer(t, r.world, "192.0.2.2:5001")
	b := make([]byte, 10)
	for s, answers := range map[*net.UDPConn]bool{answering: true, silent: false} {
		conn := c.udp(s.LocalAddr().String())
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		_, from, err := s.ReadFromUDPAddrPort(b)
		if err != nil {
			t.Fatal(err)
		}
		if answers {
			if _, err := s.WriteToUDPAddrPort([]byte("y"), from); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Read(b); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, step := range []struct {
		after time.Duration
		open  int
	}{{60 * time.Second, 2}, {48 * time.Hour, 1}} {
		ahead.Store(int64(step.after))
		until(t, fmt.Sprintf("after %v there are %d conversations", step.after, step.open), func() bool { return r.e.Stats().Open == step.open })
	}
	exchange(t, near, far)
}

func TestDatagramConversationsEnd(t *testing.T) {
	both(t, func(t *testing.T, fam family) {
		r := newRig(t, func(o *egress.Options) { o.Limits.PerDestination = 2 })
		server := udpServer(t, r.world, at(fam.world, 5000))
		c := r.container(1, anything(t))
		for range 2 {
			c.udp(at(fam.world, 5000)).Write([]byte("x"))
			if _, _, err := server.ReadFromUDPAddrPort(make([]byte, 10)); err != nil {
				t.Fatal(err)
			}
		}
		conn := c.udp(at(fam.world, 5000))
		conn.Write([]byte("x"))
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a third conversation: %v, want refused", err)
		}
		c.detach()
		until(t, "conversations ended", func() bool { return r.e.Stats().Open == 0 })
	})
}
