package wireguard

import (
	"math/rand/v2"
	"sync"
	"testing"
)

// A table is what a map is.
func TestTableAgainstMap(t *testing.T) {
	table, model := newTable[int](), map[uint32]*int{}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 20000 {
		key := r.Uint32N(3000)
		if r.IntN(3) > 0 {
			table.put(key, &i)
			model[key] = &i
		} else {
			table.drop(key)
			delete(model, key)
		}
		if look := r.Uint32N(3000); table.get(look) != model[look] {
			t.Fatalf("step %d: key %d is %v, want %v", i, look, table.get(look), model[look])
		}
	}
	if table.n != len(model) {
		t.Errorf("%d entries, want %d", table.n, len(model))
	}
	for key, want := range model {
		if table.get(key) != want {
			t.Errorf("key %d is lost", key)
		}
	}
}

// A value that is put anew is never missing meanwhile, whatever else comes and goes.
func TestTableIsReadWhileItChanges(t *testing.T) {
	table := newTable[int]()
	table.put(7, new(int))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if table.get(7) == nil {
					t.Error("the key is missing")
					return
				}
			}
		})
	}
	for i := range uint32(20000) {
		table.put(7, new(int))
		table.put(1000+i%500, new(int))
		table.drop(1000 + (i+250)%500)
	}
	close(stop)
	wg.Wait()
}

func TestTableAllocatesNothingToRead(t *testing.T) {
	table := newTable[int]()
	for i := range uint32(1000) {
		table.put(i, new(int))
	}
	var at uint32
	if n := testing.AllocsPerRun(1000, func() { at++; table.get(at % 2000) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
