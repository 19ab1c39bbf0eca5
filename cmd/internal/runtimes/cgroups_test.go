package runtimes

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// keepCgroups takes away, at the test's end, the empty groups that podman and
// containerd make for all time: the one thing a host shares with this machine.
func keepCgroups(t *testing.T) {
	t.Helper()
	groups := func() []string {
		var all []string
		for _, pattern := range []string{"/sys/fs/cgroup/*/libpod_parent", "/sys/fs/cgroup/*/default", "/sys/fs/cgroup/libpod_parent", "/sys/fs/cgroup/default"} {
			found, err := filepath.Glob(pattern)
			must(t, err)
			all = append(all, found...)
		}
		return all
	}
	before := groups()
	t.Cleanup(func() {
		for _, g := range groups() {
			if slices.Contains(before, g) {
				continue
			}
			var dirs []string
			_ = filepath.WalkDir(g, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return nil
			})
			for _, d := range slices.Backward(dirs) {
				if err := os.Remove(d); err != nil {
					t.Logf("a cgroup is left: %v", err)
				}
			}
		}
	})
}
