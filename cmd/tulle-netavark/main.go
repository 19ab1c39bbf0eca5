// Command tulle-netavark is podman's network plugin where podman has netavark.
// Its answers and errors are package cni/netavark's.
package main

import (
	"os"

	"tulle/cni/netavark"
)

func main() { os.Exit(netavark.Run(os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr)) }
