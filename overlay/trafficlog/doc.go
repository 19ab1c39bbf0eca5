// Package trafficlog writes down which conversations were allowed and refused: one
// JSON object a line, in the shape of Cloud Foundry's enriched traffic logs.
//
// What is written is switched at any time ([Log.Set]). [Log.Put] may be called on a
// packet's way: it looks at one pointer, copies the entry into a ring and goes on;
// the log's own goroutine forms and writes the line. So a line's time is that of its
// being written, a moment late; what there is no room for is counted and lost.
// Refusals, and accepted datagram conversations, are limited to so many lines a
// second and container.
package trafficlog
