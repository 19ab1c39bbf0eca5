// Package table answers, per packet, whether one tag may reach another on a
// protocol and port.
//
// The data path asks from any goroutine, on every packet that no flow covers:
// Lookup takes no lock, allocates nothing and touches, as a rule, one cache line
// that is not already near. One writer at a time, the applier of policy changes,
// adds and removes rules while readers go on.
//
// The table is a hash in two steps. A root of fixed size picks a shard, and a shard
// is a small hash table that never changes once published:
//
//	hash  63…50   49…
//	      root    bucket, then slot
//
//	Table.root ─► shard: bucket {7 keys, each with its ports, and which is where} … lists of ranges
//
// An update copies one shard, of about 60 keys where there are a million, and swaps
// the pointer to it. With many millions shards grow, and updates with them; lookups
// don't.
//
// What a reader sees is some state between the start and the end of its call. A
// rule that nobody removes is seen by every lookup, whatever else is going on: a
// shard is whole before a pointer leads to it, and what replaces it holds all it
// held but for the rule that goes.
//
// The hash is seeded for each table, so that nobody can choose applications whose
// rules collide.
//
// Shards are memory of numbers only, read by unsafe pointers: the number of a
// shard's buckets travels in the low bits of the pointer to it. Nothing outside of
// shard.go, bucket.go, spans.go and Lookup knows.
package table
