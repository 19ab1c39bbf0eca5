package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"tulle/cmd/internal/demo"
	"tulle/cmd/tulle-bench/internal/bench"
	"tulle/policy/api"
)

// What is asked of the servers, and done to them.
const (
	changesPerSecond = 200
	killEvery        = 10 * time.Second
	writers          = 128
	replicaCells     = 50
)

func replicas() bench.Scenario {
	return bench.Scenario{
		Name:    "replicas",
		Summary: "two servers on PostgreSQL under 200 changes a second, one of them killed every 10 s, 50 cells behind a balancer",
		Metrics: []bench.Metric{
			{Name: "lost", Unit: "answered changes", Bar: bench.AtMost(0)},
			{Name: "twice", Unit: "changes", Bar: bench.AtMost(0)},
			{Name: "apart", Unit: "cells", Bar: bench.AtMost(0)},
			{Name: "answered", Unit: "1/s"},
			{Name: "answer-p99", Unit: "ms"},
			{Name: "together", Unit: "s"},
		},
		Run: measureReplicas,
	}
}

func measureReplicas(ctx context.Context, r *bench.Run) (err error) {
	s, err := newSite(ctx, postgres)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	other, err := s.StartReplica(ctx, "replica")
	if err != nil {
		return err
	}
	servers := []*demo.Server{s.Server, other}
	front, back, err := balancers(servers)
	if err != nil {
		return err
	}
	defer front.Close()
	defer back.Close()
	cells := r.Count(replicaCells)
	t, err := s.newTroops(ctx, back.Addr().String(), cells, 10*cells)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	for _, do := range []string{"register", "watch"} {
		if _, err := t.do(order{Do: do}); err != nil {
			return err
		}
	}
	length := r.Time(time.Minute, 20*time.Second)
	w := &writing{site: s, front: front.Addr().String(), apps: 10 * cells}
	done := make(chan struct{})
	go func() { defer close(done); w.run(ctx, length) }()
	kills := 0
	kill := time.NewTicker(min(killEvery, length/3))
	defer kill.Stop()
	for writing := true; writing; {
		select {
		case <-done:
			writing = false
		case <-kill.C:
			if err := again(ctx, servers[kills%2]); err != nil {
				return err
			}
			kills++
		}
	}
	r.Note("%d changes in %.0f s, %d answered, %d failed and asked again, %d kills", w.sent, length.Seconds(), len(w.answered), w.failed, kills)
	return w.judge(ctx, r, t, length)
}

func again(ctx context.Context, s *demo.Server) error {
	if err := s.Kill(); err != nil {
		return err
	}
	return s.Restart(ctx)
}

// writing sends changes at a steady rate and keeps what was answered.
type writing struct {
	*site
	front string
	apps  int
	sent  int

	mu       sync.Mutex          // guards what follows
	answered map[api.Policy]bool // true: to be there, false: to be gone
	failed   int
	ms       []float64
}

// run sends a change every 1/changesPerSecond, whether or not those before it
// have been answered, as far as there are writers.
func (w *writing) run(ctx context.Context, length time.Duration) {
	w.answered = make(map[api.Policy]bool)
	due := make(chan int, changesPerSecond)
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			u := w.user()
			u.base = "https://" + w.front
			defer u.close()
			for n := range due {
				w.one(ctx, u, n)
			}
		})
	}
	tick := time.NewTicker(time.Second / changesPerSecond)
	defer tick.Stop()
	for begun := time.Now(); time.Since(begun) < length && ctx.Err() == nil; {
		<-tick.C
		// Ticks that were missed are made up for.
		for ; w.sent < int(time.Since(begun)*changesPerSecond/time.Second); w.sent++ {
			due <- w.sent
		}
	}
	close(due)
	wg.Wait()
}

// one makes a change that no other makes: it creates a policy, and every fourth
// removes it again. A change that failed is asked again until it is answered:
// both are idempotent, and so a client may.
func (w *writing) one(ctx context.Context, u *user, n int) {
	p := tcp(appID(n%w.apps), appID((n*7+1)%w.apps), uint16(1+n/w.apps))
	body, err := encode(p)
	if err != nil {
		return
	}
	paths := []string{pathPolicies}
	if n%4 == 3 {
		paths = append(paths, pathDelete)
	}
	for _, path := range paths {
		begun := time.Now()
		for ctx.Err() == nil {
			_, err := u.do(ctx, "POST", path, body)
			w.mu.Lock()
			if err == nil {
				w.answered[p] = path == pathPolicies
				w.ms = append(w.ms, time.Since(begun).Seconds()*1000)
			} else {
				w.failed++
			}
			w.mu.Unlock()
			if err == nil {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}

// judge holds what the database has, its audit record, and what the cells have
// against what was answered.
func (w *writing) judge(ctx context.Context, r *bench.Run, t *troops, length time.Duration) error {
	u := w.user()
	u.base = "https://" + w.front
	defer u.close()
	text, err := u.do(ctx, "GET", pathPolicies, nil)
	if err != nil {
		return err
	}
	var list api.Policies
	if err := json.Unmarshal(text, &list); err != nil {
		return err
	}
	there := make(map[api.Policy]int)
	for _, p := range list.Policies {
		there[p]++
	}
	lost, twice := 0, 0
	for p, want := range w.answered {
		if want != (there[p] == 1) {
			lost++
		}
	}
	for _, n := range there {
		twice += n - 1
	}
	again, err := w.recordedTwice(ctx, u)
	if err != nil {
		return err
	}
	twice += again
	revision, _, err := change(ctx, u, tcp(appID(0), appID(1), 65000), false, 0)
	if err != nil {
		return err
	}
	begun := time.Now()
	if _, err := t.do(order{Do: "reach", Revision: revision}); err != nil {
		return err
	}
	together := time.Since(begun).Seconds()
	apart := 0.0
	if err := w.complete(ctx, t); err != nil {
		r.Note("%v", err)
		apart = 1
	}
	once := func(v float64) []float64 { return []float64{v} }
	return errors.Join(
		r.Report("lost", once(float64(lost)), nil), r.Report("twice", once(float64(twice)), nil), r.Report("apart", once(apart), nil),
		r.Report("answered", once(float64(len(w.ms))/length.Seconds()), nil),
		r.Report("answer-p99", once(bench.Percentile(w.ms, 99)), nil), r.Report("together", once(together), nil))
}

// recordedTwice counts changes that the audit record has more than once: each
// was asked for again when it was not answered, and must have been made once.
func (w *writing) recordedTwice(ctx context.Context, u *user) (int, error) {
	seen := make(map[string]int)
	for next := ""; ; {
		text, err := u.do(ctx, "GET", fmt.Sprintf("%s?limit=%d%s", api.PathAudit, api.MaxAuditLimit, next), nil)
		if err != nil {
			return 0, err
		}
		var page api.Audit
		if err := json.Unmarshal(text, &page); err != nil {
			return 0, err
		}
		for _, e := range page.Entries {
			if e.Action == api.PolicyCreate || e.Action == api.PolicyDelete {
				seen[string(e.Action)+" "+e.Subject]++
			}
		}
		if page.Next == 0 {
			break
		}
		next = fmt.Sprintf("&before=%d", page.Next)
	}
	twice := 0
	for _, n := range seen {
		twice += n - 1
	}
	return twice, nil
}

// balancer passes connections on to any of the servers that takes them.
type balancer struct {
	net.Listener
	backends []string
}

func balancers(servers []*demo.Server) (front, back *balancer, err error) {
	var external, internal []string
	for _, s := range servers {
		external, internal = append(external, s.External), append(internal, s.Internal)
	}
	if front, err = balance(external); err != nil {
		return nil, nil, err
	}
	if back, err = balance(internal); err != nil {
		return nil, nil, errors.Join(err, front.Close())
	}
	return front, back, nil
}

func balance(backends []string) (*balancer, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b := &balancer{l, backends}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go b.pass(c)
		}
	}()
	return b, nil
}

func (b *balancer) pass(c net.Conn) {
	defer c.Close()
	first := rand.IntN(len(b.backends))
	for i := range b.backends {
		server, err := net.Dial("tcp", b.backends[(first+i)%len(b.backends)])
		if err != nil {
			continue
		}
		defer server.Close()
		go func() {
			defer c.Close()
			defer server.Close()
			_, _ = io.Copy(server, c) // one side ending ends the other
		}()
		_, _ = io.Copy(c, server)
		return
	}
}
