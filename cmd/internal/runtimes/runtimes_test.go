package runtimes

import "testing"

// TestRuntimes: for each runtime two containers on two cells talk while a policy
// lets them, and at no other time; and nothing is left.
func TestRuntimes(t *testing.T) {
	needRuntimes(t)
	w := newWorld(t)
	for _, r := range []struct {
		name string
		test func(*testing.T, *world)
	}{
		{"podman", testRootPodman},
		{"podman-rootless", testUserPodman},
		{"netavark", testNetavark},
		{"garden", testGarden},
		{"garden-rules", testGardenRules},
		{"runc", testRunc},
		{"runc-rootless", testUserRunc},
		{"containerd", testContainerd},
	} {
		t.Run(r.name, func(t *testing.T) {
			for _, h := range w.hosts {
				h.t = t
			}
			r.test(t, w)
		})
	}
}
