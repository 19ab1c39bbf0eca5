package hub

import (
	"context"
	"reflect"
	"time"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

// GroupSource is what the hub reads of the security groups. They are no part of the
// store's revisions, so the hub asks for the time of their last change, often.
type GroupSource interface {
	SecurityGroups(ctx context.Context, f store.GroupFilter) (page []policy.SecurityGroup, next int64, err error)
	SecurityGroupsUpdated(ctx context.Context) (time.Time, error)
}

// groups are the security groups that the hub knows. Guarded by the hub's mutex.
type groups struct {
	all map[string]*policy.SecurityGroup // by GUID; what is in it never changes
	at  uint64                           // grows with every change; 0: nothing was read yet
}

// followGroups keeps the groups in step with the source until ctx ends.
func (h *Hub) followGroups(ctx context.Context) {
	ticker := time.NewTicker(h.opt.GroupsEvery)
	defer ticker.Stop()
	var seen time.Time
	failing := false
	for {
		at, err := h.opt.Groups.SecurityGroupsUpdated(ctx)
		if err == nil && (!at.Equal(seen) || h.groupsAt() == 0) {
			// What changes while it is read is read again.
			if err = h.readGroups(ctx); err == nil {
				seen = at
			}
		}
		if err != nil && ctx.Err() == nil && !failing {
			h.opt.Log.Error("security groups cannot be read, cells go on with those they have", "error", err)
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (h *Hub) groupsAt() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.groups.at
}

func (h *Hub) readGroups(ctx context.Context) error {
	list, _, err := h.opt.Groups.SecurityGroups(ctx, store.GroupFilter{All: true})
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	next := make(map[string]*policy.SecurityGroup, len(list))
	for i := range list {
		// One that is as it was stays itself, so that watchers see what changed.
		if was := h.groups.all[list[i].GUID]; was != nil && reflect.DeepEqual(*was, list[i]) {
			next[was.GUID] = was
		} else {
			next[list[i].GUID] = &list[i]
		}
	}
	h.groups.all = next
	h.groups.at++
	for _, c := range h.cells {
		if c.watcher != nil {
			c.watcher.wake()
		}
	}
	return nil
}

// Groups has the watch tell the security groups that concern, a function of the
// group alone, says: all of them first, then what changes.
func (w *Watcher) Groups(concern func(*policy.SecurityGroup) bool) {
	w.h.mu.Lock()
	defer w.h.mu.Unlock()
	w.concern = concern
	w.wake()
}

// groupsLocked is what the cell is to be told of the groups, nil if nothing.
func (w *Watcher) groupsLocked() *api.GroupChange {
	h := w.h
	if w.concern == nil || w.groupsTold == h.groups.at {
		return nil
	}
	change := &api.GroupChange{Whole: w.groupsTold == 0}
	w.groupsTold = h.groups.at
	next := make(map[string]*policy.SecurityGroup)
	for guid, g := range h.groups.all {
		if !w.concern(g) {
			continue
		}
		next[guid] = g
		if w.groups[guid] != g {
			change.Set = append(change.Set, api.NewSecurityGroup(*g))
		}
	}
	for guid := range w.groups {
		if next[guid] == nil {
			change.Removed = append(change.Removed, guid)
		}
	}
	w.groups = next
	if !change.Whole && len(change.Set)+len(change.Removed) == 0 {
		return nil
	}
	return change
}
