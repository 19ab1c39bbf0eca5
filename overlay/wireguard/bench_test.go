package wireguard

import (
	"log/slog"
	"net/netip"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"tulle/overlay/udp"
)

// BenchmarkTrains sends super-packets' worth of frames from one cell to another
// over real sockets of this host: what the tunnel alone carries, and beside it the
// same over plain sockets. Loss counts as not carried.
func BenchmarkTrains(b *testing.B) {
	const segment, segments = 1412, 44
	train := make([]byte, segment*segments)
	measure := func(b *testing.B, received *atomic.Int64, send func() error) {
		b.SetBytes(int64(len(train)))
		received.Store(0)
		for b.Loop() {
			if err := send(); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(received.Load())*8/1e9/b.Elapsed().Seconds(), "Gbit/s-received")
	}
	listen := func(b *testing.B, host byte) *udp.Socket {
		s, err := udp.Listen(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, host}), 0), udp.Options{})
		if err != nil {
			b.Fatal(err)
		}
		return s
	}
	b.Run("wireguard", func(b *testing.B) {
		var received atomic.Int64
		first := make(chan struct{}, 1)
		var ends [2]*Tunnel
		var keys [2]PrivateKey
		for i := range ends {
			var err error
			if keys[i], err = GenerateKey(); err != nil {
				b.Fatal(err)
			}
			ends[i], err = New(Options{
				Keys: keys[i : i+1], Address: netip.AddrFrom4([4]byte{100, 64, 0, byte(i + 1)}), Conns: []udp.Conn{listen(b, byte(i+1))}, MTU: 1440,
				Receive: func(batch []udp.Message) {
					for _, m := range batch {
						received.Add(int64(m.N))
					}
					select {
					case first <- struct{}{}:
					default:
					}
				},
				Log: slog.New(slog.DiscardHandler),
			})
			if err != nil {
				b.Fatal(err)
			}
			defer ends[i].Close()
		}
		for i, t := range ends {
			other := ends[1-i]
			if err := t.Set("other", Peer{Key: other.Public(), Address: other.Address(), Endpoint: other.Local()}); err != nil {
				b.Fatal(err)
			}
		}
		send := func() error { return ends[0].Send(ends[1].Address(), 0, train, segment) }
		if err := send(); err != nil {
			b.Fatal(err)
		}
		<-first
		measure(b, &received, send)
	})
	b.Run("plain", func(b *testing.B) {
		from, to := listen(b, 1), listen(b, 2)
		defer from.Close()
		defer to.Close()
		var received atomic.Int64
		go func() {
			batch := make([]udp.Message, receiveLen)
			for i := range batch {
				batch[i].Buf = make([]byte, 65535)
			}
			for {
				n, err := to.Receive(batch)
				if err != nil {
					return
				}
				for _, m := range batch[:n] {
					received.Add(int64(m.N))
				}
			}
		}()
		measure(b, &received, func() error { return from.Send(to.Local(), train, segment) })
	})
}

// BenchmarkPeers sends a frame to each of so many peers in turn, and opens it at the
// other end: what a packet costs does not depend on how many there are, but for the
// caches that their sessions no longer share. It reports, too, what a handshake costs
// both ends together.
func BenchmarkPeers(b *testing.B) {
	for _, n := range []int{10, 100, 1000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			hub := newEnd(b, 1)
			var ends []*end
			var took time.Duration
			for i := range n {
				e := newEnd(b, 2)
				at := netip.AddrFrom4([4]byte{100, 65, byte(i >> 8), byte(i)})
				e.address, e.number = at, number(at)
				ends = append(ends, e)
				if err := e.Set("hub", Peer{Key: hub.key.Public(), Address: hub.Address(), Endpoint: hub.Local()}); err != nil {
					b.Fatal(err)
				}
				if err := hub.Set(strconv.Itoa(i), Peer{Key: e.key.Public(), Address: at, Endpoint: e.Local()}); err != nil {
					b.Fatal(err)
				}
				begun := time.Now()
				carry(hub, e, strconv.Itoa(i))
				took += time.Since(begun)
			}
			train := make([]byte, before+100, before+100+after)
			i := 0
			for b.Loop() {
				if err := hub.SendTrain(ends[i].Address(), 7, train, 100); err != nil {
					b.Fatal(err)
				}
				ends[i].take(hub.sink, 100)
				if i++; i == n {
					i = 0
				}
			}
			b.ReportMetric(float64(took.Microseconds())/float64(n), "µs/handshake")
		})
	}
}
