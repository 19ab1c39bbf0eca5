package wireguard

import "sync/atomic"

// table finds values by number without a lock. Writers, one at a time, put and
// take out; a chain never changes once it can be seen.
type table[V any] struct {
	slots atomic.Pointer[[]atomic.Pointer[link[V]]]
	n     int // the writer's
}

type link[V any] struct {
	key   uint32
	value *V
	next  *link[V]
}

func newTable[V any]() *table[V] {
	t := new(table[V])
	t.slots.Store(new(make([]atomic.Pointer[link[V]], 16)))
	return t
}

// place spreads keys of which some, addresses, lie in a row.
func place(key uint32, slots int) int {
	return int(uint64(key)*0x9e3779b97f4a7c15>>32) & (slots - 1)
}

func (t *table[V]) get(key uint32) *V {
	slots := *t.slots.Load()
	for l := slots[place(key, len(slots))].Load(); l != nil; l = l.next {
		if l.key == key {
			return l.value
		}
	}
	return nil
}

// put enters a value under a key, in one step with taking out what it had.
func (t *table[V]) put(key uint32, value *V) {
	slots := *t.slots.Load()
	if t.n == len(slots) {
		more := make([]atomic.Pointer[link[V]], 2*len(slots))
		for i := range slots {
			for l := slots[i].Load(); l != nil; l = l.next {
				head := &more[place(l.key, len(more))]
				head.Store(&link[V]{l.key, l.value, head.Load()})
			}
		}
		t.slots.Store(&more)
		slots = more
	}
	head := &slots[place(key, len(slots))]
	rest, found := without(head.Load(), key)
	if !found {
		t.n++
	}
	head.Store(&link[V]{key, value, rest})
}

// drop takes a key out, if it is in.
func (t *table[V]) drop(key uint32) {
	slots := *t.slots.Load()
	head := &slots[place(key, len(slots))]
	if rest, found := without(head.Load(), key); found {
		head.Store(rest)
		t.n--
	}
}

// without is a chain less the link of that key.
func without[V any](l *link[V], key uint32) (rest *link[V], found bool) {
	for ; l != nil; l = l.next {
		if l.key == key {
			found = true
			continue
		}
		rest = &link[V]{l.key, l.value, rest}
	}
	return rest, found
}
