package table

import (
	"slices"
	"sort"
	"unsafe"

	"tulle/policy"
)

// span is a port range, both ends included, and the highest end of this one and
// all before it.
type span struct{ start, end, highest uint16 }

const (
	wordSize  = 2
	spanWords = 3
	spanSize  = spanWords * wordSize
)

// spans are the ranges of one key, ordered by start and then by end. They may
// overlap and are not merged, so that one can be taken out again. A value never
// changes; insert and remove return new ones.
type spans []span

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

// list is spans in a shard, behind one that holds how many they are.
type list struct{ head unsafe.Pointer }

func (l list) span(i int) *span { return (*span)(unsafe.Add(l.head, i*spanSize)) }

func (l list) length() int { return int(l.span(0).start) | int(l.span(0).end)<<16 }

func (l list) spans() spans { return unsafe.Slice(l.span(1), l.length()) }

// put writes spans to where there is room for them and returns how much that was.
func (l list) put(spans spans) (words int) {
	*l.span(0) = span{start: uint16(len(spans)), end: uint16(len(spans) >> 16)}
	for i, r := range spans {
		*l.span(1 + i) = r
	}
	return (1 + len(spans)) * spanWords
}

// upTo is the last span that starts at or before port, or 0. Of those up to it one
// holds port exactly when the highest of their ends is not below it.
func (l list) upTo(port uint16) int {
	lo, hi := 0, l.length()
	for lo < hi {
		if mid := (lo + hi + 1) >> 1; l.span(mid).start <= port {
			lo = mid
		} else {
			hi = mid - 1
		}
	}
	return lo
}
