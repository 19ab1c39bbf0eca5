// Package flow is the flow table: which conversations were judged and allowed,
// between which incarnations of which endpoints, and how far they are.
//
// The data path looks flows up from any goroutine without a lock; entering and
// removing one takes the lock of one shard. Time is what [Table.Tick] was last
// given, in seconds: an expired flow is not found, at once, and its memory comes
// back as the ticks sweep the table.
//
// A flow is a record of fixed size and plain words, numbered within its shard,
// so that the table can move into memory that outlives the process. Words are
// atomic; the ones that name the flow are written before its number is put into
// the index and stay until the number has rested for two ticks after its removal.
// A reader checks the record's version before and after, and finds either the
// whole flow or none. What a late writer, stalled for more than those two ticks,
// could still do is add to a stranger's counters or sequence numbers; a verdict
// never depends on those.
//
// It is pure: no sockets, no clock, no logger.
package flow
