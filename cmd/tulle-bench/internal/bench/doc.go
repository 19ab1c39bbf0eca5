// Package bench is how Tulle is measured: what a scenario is, how its runs
// alternate, what a figure must reach, and how it is shown.
//
// A [Scenario] lives in a package of its own, sets up what it measures, its peer
// beside it, and hands functions that measure once to [Run.Pairs], which calls
// them in turn (ours, the peer's, ours, the peer's …), so that whatever else the
// machine does falls on both, and keeps the medians. What it needs in another
// process or namespace is a [Role] of the same program.
//
// [Command] is the command line over a list of scenarios. The list itself stands
// in the main package, one line a scenario.
package bench
