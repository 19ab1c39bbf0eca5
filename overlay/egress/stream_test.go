package egress_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What either end does not take in for a while arrives whole when it does, and others
// get on meanwhile.
func TestSlowEnds(t *testing.T) {
	r := newRig(t)
	server, conns := tcpServer(t, r.world, at(worldIP, 0))
	c := r.container(1, anything(t))
	sent := make([]byte, 32<<20)
	rand.NewChaCha8([32]byte{5}).Read(sent)
	for _, way := range []string{"in", "out"} {
		slow, err := c.dial(server.String())
		if err != nil {
			t.Fatal(err)
		}
		far := next(t, conns)
		from, to := io.WriteCloser(far), io.Reader(slow)
		if way == "out" {
			from, to = slow, far
		}
		written := make(chan error, 1)
		go func() {
			_, err := from.Write(sent)
			from.Close()
			written <- err
		}()
		// Nobody reads it; another connection is none the slower.
		for range 3 {
			other, err := c.dial(server.String())
			if err != nil {
				t.Fatal(err)
			}
			otherFar := next(t, conns)
			exchange(t, other, otherFar)
			other.Close()
			otherFar.Close()
		}
		got, err := io.ReadAll(to)
		if err != nil || sha256.Sum256(got) != sha256.Sum256(sent) {
			t.Errorf("%s: %d bytes, %v, want the %d sent", way, len(got), err, len(sent))
		}
		if err := <-written; err != nil {
			t.Errorf("%s: %v", way, err)
		}
		slow.Close()
		far.Close()
	}
}

// Bytes that TCP calls urgent cut a read short; what is behind them arrives all the
// same, and so does what came together with the end.
func TestUrgentBytesAndLastWords(t *testing.T) {
	r := newRig(t)
	server, conns := tcpServer(t, r.world, at(worldIP, 0))
	c := r.container(1, anything(t))
	near, err := c.dial(server.String())
	if err != nil {
		t.Fatal(err)
	}
	far := next(t, conns)
	exchange(t, near, far)
	raw, err := far.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var want []byte
	for i := range 20 {
		word := fmt.Sprintf("before %d", i)
		if _, err := far.Write([]byte(word)); err != nil {
			t.Fatal(err)
		}
		var serr error
		if err := raw.Control(func(fd uintptr) { serr = unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil) }); err != nil || serr != nil {
			t.Fatal(err, serr)
		}
		if _, err := far.Write([]byte("behind")); err != nil {
			t.Fatal(err)
		}
		want = append(append(want, word...), "behind"...)
	}
	if err := far.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	// An urgent byte that another has followed is an ordinary one again, where the
	// kernel had it in its queue: what counts is that the rest is there, in order.
	got, err := io.ReadAll(near)
	if got = bytes.ReplaceAll(got, []byte("!"), nil); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
}

// Many short connections, whose descriptors are each other's in turn: what one says
// comes to its own far end and to no other.
func TestNoConnectionHearsAnother(t *testing.T) {
	r := newRig(t)
	server, conns := tcpServer(t, r.world, at(worldIP, 0))
	go func() {
		for far := range conns {
			go func() {
				defer far.Close()
				_, _ = io.Copy(far, far)
			}()
		}
	}()
	c := r.container(1, anything(t))
	var all sync.WaitGroup
	for g := range 16 {
		all.Go(func() {
			_ = c.Do(func() error {
				rnd := rand.New(rand.NewPCG(uint64(g), 1))
				for i := range 60 {
					conn, err := net.DialTimeout("tcp4", server.String(), wait)
					if err != nil {
						t.Error(err)
						return nil
					}
					conn.SetDeadline(time.Now().Add(wait))
					word := bytes.Repeat([]byte(fmt.Sprintf("%d.%d ", g, i)), 1+rnd.IntN(4000))
					go conn.Write(word)
					got := make([]byte, len(word))
					if n, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, word) {
						t.Errorf("connection %d.%d: %d of %d bytes, %v", g, i, n, len(word), err)
					}
					if rnd.IntN(2) == 0 {
						conn.(*net.TCPConn).SetLinger(0)
					}
					conn.Close()
				}
				return nil
			})
		})
	}
	all.Wait()
	until(t, "all have ended", func() bool { return r.e.Stats().Open == 0 })
}
