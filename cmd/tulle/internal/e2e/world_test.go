package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"tulle/cmd/internal/demo"
	"tulle/overlay/netcfg/nstest"
)

// build makes the binaries once for all tests of this package.
var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "tulle-e2e-")
	if err != nil {
		return "", err
	}
	built = dir
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	args := append([]string{"build", "-trimpath"}, raceFlags...)
	args = append(args, "-o", dir+string(filepath.Separator))
	for _, b := range demo.Binaries {
		args = append(args, "tulle/cmd/"+b)
	}
	cmd := exec.Command("go", args...)
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return "", err
	}
	return dir, copySelf(filepath.Join(dir, self))
})

var built string

// self is this test binary, beside the others, where a container's user may
// execute it.
const self = "e2e.test"

func copySelf(to string) error {
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}

func TestMain(m *testing.M) {
	if url := os.Getenv(getterRole); url != "" {
		os.Exit(getURL(url))
	}
	if os.Getenv(strangerRole) != "" {
		if err := beStranger(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if os.Getenv(wireguardRole) != "" {
		if err := beWireGuard(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	code := m.Run()
	if built != "" {
		os.RemoveAll(built)
	}
	os.Exit(code)
}

// needHost skips unless a world can live on this host: user namespaces and TUN
// devices for whoever runs the tests.
func needHost(t *testing.T) {
	t.Helper()
	if err := demo.CheckHost(); err != nil {
		nstest.Skip(t, err.Error())
	}
}

// newWorld is an empty world that ends with the test, which fails if anything
// is left of it.
func newWorld(t *testing.T) *demo.World {
	t.Helper()
	bin, err := build()
	if err != nil {
		t.Fatalf("build the binaries: %v", err)
	}
	w, err := demo.NewWorld(demo.Options{BinDir: bin})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			w.DumpLogs(t.Output())
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func api(t *testing.T, w *demo.World) *demo.API {
	t.Helper()
	a, err := w.Client()
	if err != nil {
		t.Fatal(err)
	}
	return a
}
