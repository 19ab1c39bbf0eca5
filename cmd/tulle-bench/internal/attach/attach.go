package attach

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"tulle/cmd/tulle-bench/internal/bench"
	"tulle/overlay/control"
	"tulle/overlay/netcfg"
	"tulle/policy/api"
)

// What is asked: 250 containers of a /24, by 16 callers.
const (
	containers = 250
	callers    = 16
)

func attaches() bench.Scenario {
	return bench.Scenario{
		Name:    "attach",
		Summary: "a container's attach: request to answer, and 250 by 16 CNI plugins at once; each run with a fresh lease",
		Metrics: []bench.Metric{
			{Name: "attach-p99", Unit: "ms", Peer: "its 2 fsyncs", Bar: bench.AtMostBeyondPeer(25)},
			{Name: "storm", Unit: "s", Bar: bench.AtMost(5)},
			{Name: "storm-detach", Unit: "s"},
		},
		Run: measure,
	}
}

func measure(ctx context.Context, r *bench.Run) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("makes namespaces as a runtime of root's does: run it as root (the daemons are uid 65534)")
	}
	s, err := newSite(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if r.Wants("attach-p99") {
		var ours, disk []float64
		for range r.Runs("attach-p99") {
			a, d, err := s.requests(ctx, r.Number(200, 100))
			if err != nil {
				return err
			}
			ours, disk = append(ours, a), append(disk, d)
		}
		if err := r.Report("attach-p99", ours, disk); err != nil {
			return err
		}
	}
	if !r.Wants("storm", "storm-detach") {
		return nil
	}
	var up, down []float64
	for range r.Runs("storm") {
		a, d, err := s.storm(ctx, r.Count(containers))
		if err != nil {
			return err
		}
		up, down = append(up, a), append(down, d)
	}
	return errors.Join(r.Report("storm", up, nil), r.Report("storm-detach", down, nil))
}

// requests attaches n containers, one after the other, and times each from before
// the request is sent until the answer is there: a little more than the daemon has
// of it. Beside each, the disk is asked for what every attach waits for, one after
// the other: the journal's fsync and the server's database's.
func (s *site) requests(ctx context.Context, n int) (attach, fsync float64, err error) {
	c, err := s.freshCell(ctx)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, s.end(ctx, c)) }()
	spaces, err := newSpaces(n)
	if err != nil {
		return 0, 0, err
	}
	defer spaces.close()
	disk, err := newDisk(s.world.Dir)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, disk.close()) }()
	client, err := control.Dial(c.Socket)
	if err != nil {
		return 0, 0, err
	}
	defer client.Close()
	var took, synced []float64
	for i, space := range spaces {
		var tun *os.File
		if err := netcfg.Do(space, func() (err error) { tun, err = netcfg.CreateTUN("eth0", 1450); return err }); err != nil {
			return 0, 0, err
		}
		begun := time.Now()
		_, err := client.Attach(ctx, control.Attach{Container: fmt.Sprint("c", i), App: api.AppRef{GUID: s.app(i)},
			Network: "bench", Device: "eth0", Lifeline: control.LifelineNone}, tun, nil)
		took = append(took, time.Since(begun).Seconds()*1000)
		if err := errors.Join(err, tun.Close()); err != nil {
			return 0, 0, err
		}
		ms, err := disk.sync()
		if err != nil {
			return 0, 0, err
		}
		synced = append(synced, ms)
	}
	return bench.Percentile(took, 99), bench.Percentile(synced, 99), nil
}
