package table

import (
	"slices"
	"sort"

	"tulle/policy"
)

// span is a port range, both ends included, and the highest end of this one and
// all before it.
type span struct{ start, end, highest uint16 }

// spans are the ranges of one key, ordered by start and then by end. They may
// overlap and are not merged, so that one can be taken out again. A value never
// changes; insert and remove return new ones.
type spans []span

// contains finds the last span that starts at or before port. Of those up to it
// one holds port exactly when the highest of their ends is not below it.
func (l spans) contains(port uint16) bool {
	lo, hi := 0, len(l) // all before lo start at or before port, all from hi on after it
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if l[mid].start <= port {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo > 0 && port <= l[lo-1].highest
}

// place is where r stands or would stand.
func (l spans) place(r policy.PortRange) (i int, found bool) {
	i = sort.Search(len(l), func(i int) bool {
		return l[i].start > r.Start || l[i].start == r.Start && l[i].end >= r.End
	})
	return i, i < len(l) && l[i].start == r.Start && l[i].end == r.End
}

func (l spans) insert(i int, r policy.PortRange) spans {
	next := make(spans, 0, len(l)+1)
	next = append(append(append(next, l[:i]...), span{start: r.Start, end: r.End}), l[i:]...)
	next.raise(i)
	return next
}

func (l spans) remove(i int) spans {
	next := slices.Concat(l[:i], l[i+1:])
	next.raise(i)
	return next
}

// raise sets highest from i on.
func (l spans) raise(i int) {
	var highest uint16
	if i > 0 {
		highest = l[i-1].highest
	}
	for ; i < len(l); i++ {
		highest = max(highest, l[i].end)
		l[i].highest = highest
	}
}
