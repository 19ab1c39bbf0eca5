package ring

import (
	"runtime"
	"sync"
	"testing"
)

type value struct {
	who, number int
	text        string
}

// TestRing: in order, as many as there is room for, again and again.
func TestRing(t *testing.T) {
	r := New[value](5)
	var got value
	for round := range 5 {
		if r.Take(&got) {
			t.Fatalf("round %d: %+v of an empty ring", round, got)
		}
		n := 0
		for r.Put(&value{number: n}) {
			n++
		}
		if n != 8 {
			t.Fatalf("round %d: room for %d, want 8", round, n)
		}
		if !r.Take(&got) || got.number != 0 || !r.Put(&value{number: n}) || r.Put(&value{}) {
			t.Fatalf("round %d: after one take there is not room for one", round)
		}
		for i := 1; i <= n; i++ {
			if !r.Take(&got) || got.number != i {
				t.Fatalf("round %d: took %+v, want number %d", round, got, i)
			}
		}
	}
}

// TestRingOfMany: what was put is taken once, whole, and in each putter's order.
func TestRingOfMany(t *testing.T) {
	r := New[value](64)
	const putters, each = 8, 5000
	var wg sync.WaitGroup
	for who := range putters {
		wg.Go(func() {
			for n := range each {
				for v := (value{who, n, "whole"}); !r.Put(&v); {
					runtime.Gosched()
				}
			}
		})
	}
	next := make([]int, putters)
	for range putters * each {
		var v value
		for !r.Take(&v) {
			runtime.Gosched()
		}
		if v.text != "whole" || next[v.who] != v.number {
			t.Fatalf("took %+v, next of it is %d", v, next[v.who])
		}
		next[v.who]++
	}
	wg.Wait()
	if v := (value{}); r.Take(&v) {
		t.Errorf("%+v is left", v)
	}
}

func TestPutDoesNotAllocate(t *testing.T) {
	r := New[value](4)
	v, got := value{text: "x"}, value{}
	if n := testing.AllocsPerRun(100, func() { r.Put(&v); r.Put(&v); r.Take(&got) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
