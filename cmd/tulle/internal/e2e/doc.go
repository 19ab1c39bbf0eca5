// Package e2e holds the tests that run the whole system: real binaries, real
// namespaces, the Linux kernel's own VXLAN on the other end. Each test makes the
// hosts it needs and leaves none behind.
package e2e
