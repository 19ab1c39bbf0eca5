package garden

import (
	"errors"
	"slices"
)

// maxPort is where a pool ends, whatever its configuration says.
const maxPort = 65535

var errExhausted = errors.New("acquire port: port pool exhausted")

// acquired is the state: each container's host ports, by handle.
type acquired map[string][]uint32

// take gives the handle the lowest port of the pool that nobody has.
func (a acquired) take(handle string, start, total uint32) (uint32, error) {
	used := map[uint32]bool{}
	for _, ports := range a {
		for _, p := range ports {
			used[p] = true
		}
	}
	end := min(uint64(start)+uint64(total)-1, maxPort)
	for p := uint64(start); p <= end; p++ {
		if !used[uint32(p)] {
			a[handle] = append(a[handle], uint32(p))
			return uint32(p), nil
		}
	}
	return 0, errExhausted
}

// give takes ports back; without any, all of the handle's.
func (a acquired) give(handle string, ports ...uint32) {
	left := slices.DeleteFunc(a[handle], func(p uint32) bool { return len(ports) == 0 || slices.Contains(ports, p) })
	a[handle] = left
	if len(left) == 0 {
		delete(a, handle)
	}
}
