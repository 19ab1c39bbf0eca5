package dataplane

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/miekg/dns"

	"tulle/cmd/tulle-bench/internal/bench"
)

// dnsRole is the generator of questions in its own process.
const dnsRole = "dns-load"

// dnsOrder is a line that the generator reads: for how long it asks, how many
// questions may be under way, and how many it asks a second (0: as fast as answers
// come).
type dnsOrder struct {
	To     netip.AddrPort
	Time   time.Duration
	Window int
	Rate   float64
}

// dnsResult is the line it writes.
type dnsResult struct {
	Rate  float64 // answers a second
	P99   time.Duration
	Lost  int
	Error string `json:",omitempty"`
}

// dnsGenerator reads orders until its input ends.
func dnsGenerator(_ context.Context, _ []string, in io.Reader, out io.Writer) error {
	orders, results := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var o dnsOrder
		if err := orders.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		got, err := o.run()
		if err != nil {
			got.Error = err.Error()
		}
		if err := results.Encode(got); err != nil {
			return err
		}
	}
}

// dnsLost is how long an answer may take; then its question counts as lost.
const dnsLost = 200 * time.Millisecond

// run asks. One goroutine sends and receives, so that it costs both sides the same.
func (o dnsOrder) run() (dnsResult, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(o.To))
	if err != nil {
		return dnsResult{}, err
	}
	defer conn.Close()
	questions, err := dnsQuestions()
	if err != nil {
		return dnsResult{}, err
	}
	var (
		sent      [1 << 16]time.Time
		id        uint16
		under     int
		latencies []float64 // seconds
		lost      int
		buf       [4096]byte
	)
	begun := time.Now()
	due := begun
	send := func(now time.Time) error {
		id++
		q := questions[int(id)%len(questions)]
		binary.BigEndian.PutUint16(q, id)
		sent[id] = now
		under++
		_, err := conn.Write(q)
		return err
	}
	for now := begun; now.Sub(begun) < o.Time; now = time.Now() {
		wait := dnsLost
		for under < o.Window {
			if o.Rate > 0 {
				if wait = due.Sub(now); wait > 0 {
					break
				}
				due = due.Add(time.Duration(float64(time.Second) / o.Rate))
				wait = dnsLost
			}
			if err := send(now); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
				return dnsResult{}, fmt.Errorf("ask %s: %w", o.To, err)
			}
		}
		if err := conn.SetReadDeadline(now.Add(min(wait, dnsLost))); err != nil {
			return dnsResult{}, err
		}
		n, err := conn.Read(buf[:])
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if wait >= dnsLost { // nothing came for so long
				lost += under
				under = 0
			}
			continue
		case errors.Is(err, syscall.ECONNREFUSED): // it has not started yet
			under = 0
			continue
		case err != nil:
			return dnsResult{}, fmt.Errorf("ask %s: %w", o.To, err)
		}
		if n < 12 || buf[3]&0xf != dns.RcodeSuccess || binary.BigEndian.Uint16(buf[6:]) == 0 {
			under--
			continue // no answer
		}
		got := binary.BigEndian.Uint16(buf[:])
		if sent[got].IsZero() {
			continue // counted as lost
		}
		latencies = append(latencies, time.Since(sent[got]).Seconds())
		sent[got] = time.Time{}
		under--
	}
	return dnsResult{
		Rate: float64(len(latencies)) / time.Since(begun).Seconds(),
		P99:  time.Duration(bench.Percentile(latencies, 99) * float64(time.Second)), Lost: lost,
	}, nil
}

func dnsQuestions() ([][]byte, error) {
	var all [][]byte
	for i := range dnsNames {
		q, err := new(dns.Msg).SetQuestion(string(dnsName(i))+".", dns.TypeA).Pack()
		if err != nil {
			return nil, err
		}
		all = append(all, q)
	}
	return all, nil
}
