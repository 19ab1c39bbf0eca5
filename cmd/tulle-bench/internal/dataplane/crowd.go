package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"tulle/cmd/tulle-bench/internal/bench"
	"tulle/cmd/tulle-bench/internal/netlab"
	"tulle/policy"
	"tulle/policy/api"
)

// Sizes of the crowd: all are on the client's cell.
const (
	crowdSize   = 250
	chatting    = 200
	chatPause   = 100 * time.Millisecond // between two requests of a chat
	chatApp     = "chat"
	crowdThread = 64
)

func crowd() bench.Scenario {
	const alone = "ourselves, alone"
	return bench.Scenario{
		Name:    "crowd",
		Summary: "one pair across cells, with 250 containers on the client's cell, 200 of them chatting",
		Metrics: []bench.Metric{
			{Name: "throughput", Unit: "Gbit/s", Peer: alone, Bar: bench.RatioAtLeast(0.8)},
			{Name: "rate", Unit: "1/s", Peer: alone, Bar: bench.RatioAtLeast(0.8)},
			{Name: "threads", Unit: "OS threads", Bar: bench.AtMost(crowdThread)},
		},
		Run: measureCrowd,
	}
}

func measureCrowd(ctx context.Context, run *bench.Run) (err error) {
	busy, alone := &rig{}, &rig{}
	defer func() { err = errors.Join(err, busy.Close(), alone.Close()) }()
	for _, r := range []*rig{busy, alone} {
		if err := r.setOurs(ctx, false, 2, api.ModeVXLAN); err != nil {
			return err
		}
	}
	c, err := busy.tulle.gather(ctx, max(4, run.Count(crowdSize))-1, max(2, run.Count(chatting)))
	if err != nil {
		return err
	}
	defer c.close()
	run.Note("MTU of the endpoints %d; %d containers on the client's cell, %d of them chatting", busy.tulle.mtu, len(busy.tulle.containers)-1, 2*len(c.chats))
	d := length(run)
	if err := run.Pairs(ctx, "throughput", c.beside(busy.ours.throughput(d)), alone.ours.throughput(d)); err != nil {
		return err
	}
	if err := run.Pairs(ctx, "rate", c.beside(busy.ours.rate(d)), alone.ours.rate(d)); err != nil {
		return err
	}
	run.Note("%d requests were chatted, %d failed", c.done.Load(), c.failed.Load())
	if c.done.Load() == 0 {
		return errors.New("the crowd did not chat")
	}
	return run.Alone(ctx, "threads", c.beside(func(ctx context.Context) (float64, error) {
		if err := pause(ctx); err != nil {
			return 0, err
		}
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", busy.tulle.cells[0].PID()))
		return float64(len(threads)), err
	}))
}

// crowdOf is the chatting part of the crowd.
type crowdOf struct {
	chats        []net.Conn
	done, failed atomic.Int64
}

// gather attaches n more containers to the client's cell and has so many of them
// open connections to each other, in pairs.
func (t *tulle) gather(ctx context.Context, n, chatting int) (*crowdOf, error) {
	c := &crowdOf{}
	var spaces []*netlab.Namespace
	var addrs []netip.Addr
	for range n {
		ns, got, err := t.attach(ctx, t.cells[0], chatApp)
		if err != nil {
			return nil, err
		}
		if len(spaces) == 0 {
			if err := t.api.Create(ctx, policy.Policy{Source: got.App, Destination: got.App, Protocol: policy.TCP, Ports: ports}); err != nil {
				return nil, err
			}
		}
		spaces, addrs = append(spaces, ns), append(addrs, got.Address.Addr())
	}
	for i := 0; i+1 < min(chatting, n); i += 2 {
		var l net.Listener
		at := netip.AddrPortFrom(addrs[i], netlab.FirstPort).String()
		err := spaces[i].Do(func() (err error) { l, err = net.Listen("tcp4", at); return err })
		if err != nil {
			return nil, err
		}
		go echoOne(l)
		conn, err := dialIn(ctx, spaces[i+1], at)
		if err != nil {
			return nil, fmt.Errorf("chat: %w", err)
		}
		c.chats = append(c.chats, conn)
	}
	return c, nil
}

func dialIn(ctx context.Context, ns *netlab.Namespace, at string) (c net.Conn, err error) {
	for end := time.Now().Add(reachPatience); ; {
		err = ns.Do(func() (err error) { c, err = net.DialTimeout("tcp4", at, 5*time.Second); return err })
		if err == nil || time.Now().After(end) {
			return c, err
		}
		if err := pause(ctx); err != nil {
			return nil, err
		}
	}
}

// echoOne serves one connection.
func echoOne(l net.Listener) {
	defer l.Close()
	c, err := l.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	b := make([]byte, 128)
	for {
		n, err := c.Read(b)
		if err != nil {
			return
		}
		if _, err := c.Write(b[:n]); err != nil {
			return
		}
	}
}

// beside has the crowd chat while something is measured.
func (c *crowdOf) beside(m bench.Measure) bench.Measure {
	return func(ctx context.Context) (float64, error) {
		var wg sync.WaitGroup
		stop := make(chan struct{})
		for i, conn := range c.chats {
			wg.Go(func() { c.chat(conn, time.Duration(i)*chatPause/time.Duration(len(c.chats)), stop) })
		}
		v, err := m(ctx)
		close(stop)
		wg.Wait()
		return v, err
	}
}

func (c *crowdOf) chat(conn net.Conn, first time.Duration, stop <-chan struct{}) {
	b := make([]byte, 100)
	for next := time.NewTimer(first); ; next.Reset(chatPause) {
		select {
		case <-stop:
			return
		case <-next.C:
		}
		_, err := conn.Write(b)
		if err == nil {
			_, err = conn.Read(b)
		}
		if err != nil {
			c.failed.Add(1)
			return
		}
		c.done.Add(1)
	}
}

func (c *crowdOf) close() {
	for _, conn := range c.chats {
		conn.Close()
	}
}
