// Package runtimes holds the tests that start containers with the runtimes people
// use, for real, each configured by the files on its page in docs/runtimes. A test
// host is a mount and a pid namespace over this machine: its /etc, /run and /opt
// are its own, and what runs in it ends with it.
package runtimes
