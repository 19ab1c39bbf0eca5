package flow

import "sync/atomic"

// round is how many keys Ahead takes at a time.
const round = 64

// Ahead is told the keys of packets that are about to be looked up, and touched. Where
// there are very many flows each of them is in memory that is not near, and waiting for
// one after the other costs more than all else that is done with a small packet. Here
// the lines of many are asked for before the first is waited for. It decides nothing.
func (t *Table) Ahead(keys []Key) {
	for len(keys) > round {
		t.ahead(keys[:round])
		keys = keys[round:]
	}
	t.ahead(keys)
}

func (t *Table) ahead(keys []Key) {
	var entries [round]*atomic.Uint64
	var records [round]*record
	var hashes, found [round]uint64
	for i := range keys {
		n := nameOf(&keys[i])
		h := n.hash(&t.seed)
		index := *t.shards[h>>(64-shardBits)].index.Load()
		entries[i&(round-1)], hashes[i&(round-1)] = &index[h&uint64(len(index)-1)], h
	}
	// Loops that do nothing but load: so many more loads are under way at once.
	for i, e := range entries[:len(keys)] {
		found[i] = e.Load()
	}
	some := 0
	for i, e := range found[:len(keys)] {
		if h := hashes[i]; e&hashMask == h<<32 && uint32(e) >= firstNumber {
			records[some&(round-1)] = t.shards[h>>(64-shardBits)].record(uint32(e) - firstNumber)
			some++
		}
	}
	for _, r := range records[:some] {
		r.version.Load()
		r.tags.Load()
		r.bytes[1].Load()
		r.life.Load()
	}
}
