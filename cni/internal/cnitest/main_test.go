package cnitest_test

import (
	"os"
	"path/filepath"
	"testing"

	"tulle/cni"
	"tulle/overlay/netcfg/nstest"
)

// The test binary, linked under the plugin's name, is the plugin that libcni
// executes.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == plugin {
		os.Exit(cni.Run(os.Getenv, os.Stdin, os.Stdout, os.Stderr))
	}
	nstest.Main(m)
}

const plugin = "tulle-cni"

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
