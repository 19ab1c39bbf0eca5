// Command tulle-garden is Garden's external networker (guardian's key
// network_plugin). Its answers and errors are package cni/garden's.
package main

import (
	"os"

	"tulle/cni/garden"
)

func main() { os.Exit(garden.Run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
