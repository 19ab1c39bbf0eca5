package traffic

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// The first byte of a connection says what it is for.
const (
	asStream = 's' // all is read; then the number of bytes and of nanoseconds is answered
	asEcho   = 'e' // each byte is answered
)

// blockSize is what one read or write of a stream has at most.
const blockSize = 256 << 10

type server struct {
	datagrams   atomic.Int64
	first, last atomic.Int64 // of them, in nanoseconds of the monotonic clock
}

var begun = time.Now()

func now() int64 { return int64(time.Since(begun)) }

func serve() (*server, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { setCongestion(int(fd)) }) // connections inherit it
	}}
	l, err := lc.Listen(context.Background(), "tcp4", fmt.Sprintf(":%d", Port))
	if err != nil {
		return nil, err
	}
	u, err := net.ListenUDP("udp4", &net.UDPAddr{Port: Port})
	if err != nil {
		return nil, err
	}
	// As large as an ordinary user may have it.
	if err := u.SetReadBuffer(4 << 20); err != nil {
		return nil, err
	}
	s := &server{}
	go s.accept(l)
	go s.receive(ipv4.NewPacketConn(u))
	return s, nil
}

func (s *server) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go answer(c.(*net.TCPConn))
	}
}

func answer(c *net.TCPConn) {
	defer c.Close()
	one := make([]byte, 1)
	if _, err := c.Read(one); err != nil {
		return
	}
	switch one[0] {
	case asStream:
		if f := blocking(c); f != nil {
			defer f.Close()
			swallow(int(f.Fd()))
		}
	case asEcho:
		// A connection for a single byte is not worth a thread.
		if _, err := c.Write(one); err != nil {
			return
		}
		if _, err := c.Read(one); err != nil {
			return
		}
		if f := blocking(c); f != nil {
			defer f.Close()
			fd := int(f.Fd())
			_, _ = onThread(func() (int, error) { return 0, echo(fd, one) })
		}
	}
}

// blocking is the connection's descriptor, blocking.
func blocking(c *net.TCPConn) *os.File {
	f, err := c.File()
	if err != nil {
		return nil
	}
	if err := unix.SetNonblock(int(f.Fd()), false); err != nil {
		f.Close()
		return nil
	}
	return f
}

func swallow(fd int) {
	block := make([]byte, blockSize)
	var bytes, from int64
	for {
		n, err := read(fd, block)
		if n <= 0 || err != nil {
			break
		}
		if from == 0 {
			from = now()
		}
		bytes += int64(n)
	}
	report := binary.BigEndian.AppendUint64(nil, uint64(bytes))
	_ = writeAll(fd, binary.BigEndian.AppendUint64(report, uint64(now()-from))) // the other end sees what is missing
}

// echo answers bytes; the first, which is in one, was read already.
func echo(fd int, one []byte) error {
	for {
		if err := rawSend(fd, one); err != nil {
			return err
		}
		if err := rawReceive(fd, one); err != nil {
			return err
		}
	}
}

// receive counts datagrams.
func (s *server) receive(c *ipv4.PacketConn) {
	batch := make([]ipv4.Message, 64)
	for i := range batch {
		batch[i].Buffers = [][]byte{make([]byte, 2048)}
	}
	for {
		n, err := c.ReadBatch(batch, 0)
		if err != nil {
			return
		}
		at := now()
		if s.datagrams.Add(int64(n)) == int64(n) {
			s.first.Store(at)
		}
		s.last.Store(at)
	}
}

// count tells how many datagrams came a second since the last count, and begins
// anew.
func (s *server) count() Result {
	n, took := s.datagrams.Swap(0), s.last.Load()-s.first.Load()
	if n < 2 || took <= 0 {
		return Result{}
	}
	return Result{PerSecond: float64(n) / time.Duration(took).Seconds(), Sent: int(n)}
}
