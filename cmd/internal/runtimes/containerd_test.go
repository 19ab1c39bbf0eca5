package runtimes

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	goruntime "runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"tulle/overlay/control"
)

// containerdConfig is the test's, not the page's: the page is about networks. It
// keeps off what CRI would want of the host.
const containerdConfig = `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "/run/containerd/containerd.sock"
`

// startContainerd returns when the daemon serves.
func startContainerd(t *testing.T, h *host) (stop func()) {
	t.Helper()
	h.write("/etc/containerd/config.toml", containerdConfig, 0)
	cmd := h.command(context.Background(), nil, "sh", "-c", "echo $$ >/run/containerd.pid && exec containerd")
	errs, err := cmd.StderrPipe()
	must(t, err)
	must(t, cmd.Start())
	booted, ended := make(chan struct{}), make(chan struct{})
	var log bytes.Buffer
	go func() {
		defer close(ended)
		once := sync.OnceFunc(func() { close(booted) })
		for lines := bufio.NewScanner(errs); lines.Scan(); {
			fmt.Fprintln(&log, lines.Text())
			if strings.Contains(lines.Text(), "containerd successfully booted") {
				once()
			}
		}
	}()
	select {
	case <-booted:
	case <-ended:
		t.Fatalf("containerd ended: %v\n%s", cmd.Wait(), log.String())
	case <-time.After(patience):
		t.Fatal("containerd does not boot")
	}
	return func() {
		h.run(nil, "sh", "-c", "kill $(cat /run/containerd.pid)")
		<-ended
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Logf("containerd: %v\n%s", err, log.String())
		}
	}
}

// archive makes an image that ctr imports of a root file system's tarball, in the
// form of `docker save`.
func archive(t *testing.T, rootfs string) string {
	t.Helper()
	layer, err := os.ReadFile(rootfs + ".tar")
	must(t, err)
	config, err := json.Marshal(map[string]any{"architecture": goruntime.GOARCH, "os": "linux", "config": map[string]any{},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}}})
	must(t, err)
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{"example.internal/box:1"}, "Layers": []string{"layer.tar"}}})
	must(t, err)
	path := rootfs + ".image.tar"
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	w := tar.NewWriter(f)
	for _, part := range []struct {
		name string
		body []byte
	}{{"layer.tar", layer}, {"config.json", config}, {"manifest.json", manifest}} {
		must(t, w.WriteHeader(&tar.Header{Name: part.name, Mode: 0o644, Size: int64(len(part.body))}))
		_, err := w.Write(part.body)
		must(t, err)
	}
	must(t, w.Close())
	return path
}

func testContainerd(t *testing.T, w *world) {
	server, client := w.hosts[0], w.hosts[1]
	image := archive(t, w.image)
	start := func(h *host, env []string, id string, command []string, flags ...string) error {
		// ctr hands its streams on to the container; a shell ends in between.
		args := append([]string{"sh", "-c", `"$@" </dev/null >/dev/null 2>/run/ctr.$$ || { cat /run/ctr.$$; exit 1; }`, "sh", "ctr", "run", "-d", "--cni"}, flags...)
		_, err := h.try(env, append(append(args, "example.internal/box:1", id), command...)...)
		return err
	}
	for _, h := range w.hosts {
		h.configure("containerd.md", 0)
		defer startContainerd(t, h)()
		h.run(nil, "ctr", "image", "import", image)
	}
	must(t, start(server, nil, "ctr-server-0", serve))
	must(t, start(client, []string{"TULLE_APP=ctr-client"}, "any", idle, trustFlags(t, "containerd.md")...))
	to, from := server.endpoint(t, ofApp("ctr-server")), client.endpoint(t, ofApp("ctr-client"))
	if to.Container != "default-ctr-server-0" || to.Instance != "0" || to.Lifeline != control.LifelinePidfd {
		t.Errorf("endpoint %+v", to)
	}
	n := 0
	inside := func(args ...string) (string, error) {
		n++
		// ctr does not wait for the last of what a command has said when it has ended.
		return client.try(nil, append([]string{"ctr", "task", "exec", "--exec-id", fmt.Sprint("ask", n), "any",
			"sh", "-c", `"$0" "$@"; status=$?; sleep 1; exit $status`}, args...)...)
	}
	w.meet(t, from, to, inside)
	w.verifies(t, from, to, inside)

	// One that ends by itself is detached; then DEL finds nothing, and says so by success.
	server.run(nil, "ctr", "task", "kill", "-s", "9", "ctr-server-0")
	client.run(nil, "ctr", "task", "kill", "-s", "9", "any")
	for h, id := range map[*host]string{server: "ctr-server-0", client: "any"} {
		h.run(nil, "ctr", "task", "rm", "-f", id)
		h.run(nil, "ctr", "container", "rm", id)
		h.gone(t)
	}

	t.Run("a container of no app leaves nothing", func(t *testing.T) {
		if err := start(server, nil, "nameless", idle); err == nil || !strings.Contains(err.Error(), "nobody says which app") {
			t.Errorf("it starts: %v", err)
		}
		server.gone(t)
	})
}
