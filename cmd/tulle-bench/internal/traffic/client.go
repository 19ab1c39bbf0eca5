package traffic

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// reach waits until a connection is answered: policies take effect in their time.
func reach(ctx context.Context, o Order) error {
	var last error
	for end := time.Now().Add(o.Time); time.Now().Before(end); {
		fd, err := dial(o.To)
		if err == nil {
			one := []byte{asEcho}
			if err = writeAll(fd, one); err == nil {
				_, err = read(fd, one)
			}
			abort(fd)
			if err == nil {
				return nil
			}
		}
		last = err
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return last
}

// stream sends for a time; the other end says how much arrived, and how fast.
func stream(o Order) (Result, error) {
	fd, err := dial(o.To)
	if err != nil {
		return Result{}, err
	}
	defer unix.Close(fd)
	block := make([]byte, blockSize)
	if err := writeAll(fd, []byte{asStream}); err != nil {
		return Result{}, err
	}
	for end := time.Now().Add(o.Time); time.Now().Before(end); {
		if err := writeAll(fd, block); err != nil {
			return Result{}, err
		}
	}
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		return Result{}, err
	}
	report := make([]byte, 16)
	for have := 0; have < len(report); {
		n, err := read(fd, report[have:])
		if n <= 0 || err != nil {
			return Result{}, fmt.Errorf("the stream's other end said nothing: %v", err)
		}
		have += n
	}
	bytes, took := binary.BigEndian.Uint64(report), time.Duration(binary.BigEndian.Uint64(report[8:]))
	return Result{PerSecond: float64(bytes) * 8 / took.Seconds()}, nil
}

// rr sends a byte and waits for its answer, over and over.
func rr(o Order) (Result, error) {
	fd, err := dial(o.To)
	if err != nil {
		return Result{}, err
	}
	defer unix.Close(fd)
	took := make([]time.Duration, 0, 4<<20) // nothing is allocated while it runs
	return onThread(func() (Result, error) {
		one := []byte{asEcho}
		begun := time.Now()
		for at := begun; at.Sub(begun) < o.Time && len(took) < cap(took); {
			if err := rawSend(fd, one); err != nil {
				return Result{}, err
			}
			if err := rawReceive(fd, one); err != nil {
				return Result{}, err
			}
			done := time.Now()
			took = append(took, done.Sub(at))
			at = done
		}
		rate := float64(len(took)) / time.Since(begun).Seconds()
		slices.Sort(took)
		return Result{PerSecond: rate, Median: took[len(took)/2]}, nil
	})
}

// crr makes a connection, sends a byte, reads its answer and ends the
// connection, over and over, with several clients at once.
func crr(o Order) (Result, error) {
	var mu sync.Mutex // guards all and failed
	var all []time.Duration
	var failed error
	var wg sync.WaitGroup
	begun := time.Now()
	for range max(1, o.Clients) {
		wg.Go(func() {
			var took []time.Duration
			var err error
			for err == nil && time.Since(begun) < o.Time {
				at := time.Now()
				if err = connectOnce(o); err == nil {
					took = append(took, time.Since(at))
				}
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, took...)
			if err != nil {
				failed = err
			}
		})
	}
	wg.Wait()
	if failed != nil || len(all) == 0 {
		return Result{}, fmt.Errorf("after %d connections: %w", len(all), failed)
	}
	rate := float64(len(all)) / time.Since(begun).Seconds()
	slices.Sort(all)
	return Result{PerSecond: rate, Median: all[len(all)/2]}, nil
}

// connectOnce's connections go through the poller: here many wait at once.
func connectOnce(o Order) error {
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { setCongestion(int(fd)) })
	}}
	conn, err := d.Dial("tcp4", netip.AddrPortFrom(o.To, Port).String())
	if err != nil {
		return err
	}
	c := conn.(*net.TCPConn)
	defer c.Close()
	if err := c.SetLinger(0); err != nil {
		return err
	}
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	one := []byte{asEcho}
	if _, err := c.Write(one); err != nil {
		return err
	}
	_, err = c.Read(one)
	return err
}

// flood sends datagrams for a time, as fast as they are taken.
func flood(o Order) (Result, error) {
	c, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: o.To.AsSlice(), Port: Port})
	if err != nil {
		return Result{}, err
	}
	defer c.Close()
	batch := make([]ipv4.Message, 64)
	for i := range batch {
		batch[i].Buffers = [][]byte{make([]byte, o.Size)}
	}
	p := ipv4.NewPacketConn(c)
	var r Result
	begun := time.Now()
	for time.Since(begun) < o.Time {
		n, err := p.WriteBatch(batch, 0)
		if err != nil {
			return r, err
		}
		r.Sent += n
	}
	r.PerSecond = float64(r.Sent) / time.Since(begun).Seconds()
	return r, nil
}

// flows sends a datagram each from so many ports.
func flows(o Order) error {
	const firstPort = 20_000
	for i := range o.Count {
		c, err := net.DialUDP("udp4", &net.UDPAddr{Port: firstPort + i}, &net.UDPAddr{IP: o.To.AsSlice(), Port: Port})
		if err != nil {
			return err
		}
		_, err = c.Write([]byte{1})
		c.Close()
		if err != nil {
			return err
		}
		time.Sleep(20 * time.Microsecond) // a burst would be lost in a queue
	}
	return nil
}
