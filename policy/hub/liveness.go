package hub

import (
	"context"
	"slices"
	"time"

	"tulle/policy/api"
)

// judgeRegularly judges until ctx ends.
func (h *Hub) judgeRegularly(ctx context.Context) {
	ticker := time.NewTicker(h.opt.JudgeEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			h.judge()
		}
	}
}

// judge finds out which cells are lost: those of which nothing was heard for
// Options.SilentAfter. A hub that has just started says nothing until everybody
// had that long to be heard; the cells go on with what they were told last.
func (h *Hub) judge() {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.opt.Now()
	if now.Sub(h.started) < h.opt.SilentAfter {
		return
	}
	lost := []string{}
	for name, p := range h.x.peers {
		if p.Kind == api.KindTulle && now.Sub(h.heardLocked(name)) >= h.opt.SilentAfter {
			lost = append(lost, name)
		}
	}
	slices.Sort(lost)
	h.loseLocked(lost)
}

// backLocked takes a cell that is heard of off the lost ones.
func (h *Hub) backLocked(name string) {
	if i, was := slices.BinarySearch(h.lost, name); was {
		h.loseLocked(append(append([]string{}, h.lost[:i]...), h.lost[i+1:]...))
	}
}

// loseLocked makes the sorted list that of the lost cells, and tells every watch.
func (h *Hub) loseLocked(lost []string) {
	if h.verdict > 0 && slices.Equal(lost, h.lost) {
		return
	}
	for _, name := range lost {
		if _, was := slices.BinarySearch(h.lost, name); !was {
			h.opt.Log.Warn("cell is lost: its containers are not found by name until it is heard of again",
				"cell", name, "last_seen", h.heardLocked(name))
		}
	}
	for _, name := range h.lost {
		if _, is := slices.BinarySearch(lost, name); !is {
			h.opt.Log.Info("lost cell is back, or has given up its lease", "cell", name)
		}
	}
	h.lost = lost
	h.verdict++
	for _, c := range h.cells {
		if c.watcher != nil {
			c.watcher.wake()
		}
	}
}
