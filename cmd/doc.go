// Package cmd holds Tulle's binaries, a folder each. Their mains only map an
// error to an exit code; what they do lives in the packages they import. The
// test here holds the whole project to its layers: imports go down only.
package cmd
