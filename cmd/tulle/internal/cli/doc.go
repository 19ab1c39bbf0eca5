// Package cli is the command line: what a person, or a script of theirs, asks of
// the policy server and of the cell daemon on the same host.
//
// The policy commands have the grammar, texts and tables of the cf CLI's
// (reference: cf-cli 1.1 to 1.3), so that hands and scripts need not learn
// anew. They are clients of the external API alone and hold no state: server,
// token and target come from flags or the environment. With --output json every
// command prints one JSON value instead.
//
// The package reads its environment and streams from what New is given, so a
// test runs any command in process.
package cli
