// Package table answers, per packet, whether one tag may reach another on a
// protocol and port.
//
// The data path asks from any goroutine, on every packet that no flow covers:
// Lookup takes no lock, allocates nothing and touches, as a rule, one cache line
// that is not already near. One writer at a time, the applier of policy changes,
// adds and removes rules while readers go on.
//
// The table is an extendible hash in three steps. A root of fixed size picks a
// region, a region's directory picks a shard, and a shard is a small hash table
// that never changes once published. An update copies one shard and swaps the
// pointers to it; a shard that is full is split in two, and now and then its
// region's directory, never the whole table's, doubles. So an update's cost
// follows the change and not the table, and it has no bad day:
//
//	hash  63…58     57…32                       31…0
//	      region    directory, low bits first   first bucket
//
//	Table.root ─► region ─► directory ─► shard ─► bucket {5 pairs, 5 ranges}
//	 fixed         doubles on its own     31        └─► spans, where a pair has several
//
// What a reader sees is some state between the start and the end of its call. A
// rule that nobody removes is seen by every lookup, whatever else is going on:
// a shard is whole before a pointer leads to it, and what replaces it holds all
// it held but for the rule that goes.
//
// The hash is seeded for each table, so that nobody can choose applications whose
// rules collide.
package table
