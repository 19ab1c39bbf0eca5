// Command tulle-cni is the CNI plugin: container runtimes call it to give a
// container its overlay address. Its answers and errors are package cni's.
package main

import (
	"os"

	"tulle/cni"
)

func main() { os.Exit(cni.Run(os.Getenv, os.Stdin, os.Stdout, os.Stderr)) }
