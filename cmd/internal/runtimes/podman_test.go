package runtimes

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"tulle/overlay/control"
)

// podman is a user's podman on a host.
type podman struct {
	h      *host
	env    []string
	prefix []string // becomes the user
}

func rootPodman(h *host) podman { return podman{h: h} }

func userPodman(h *host) podman {
	return podman{h: h, env: []string{"HOME=" + home, "XDG_RUNTIME_DIR=" + runtime, "USER=" + user},
		prefix: []string{"setpriv", "--reuid", fmt.Sprint(userID), "--regid", fmt.Sprint(userID), "--clear-groups", "--"}}
}

// with is the environment for one call.
func (p podman) with(env ...string) podman {
	p.env = append(append([]string{}, p.env...), env...)
	return p
}

func (p podman) try(args ...string) (string, error) {
	return p.h.try(p.env, append(append(append([]string{}, p.prefix...), "podman"), args...)...)
}

func (p podman) run(args ...string) string {
	p.h.t.Helper()
	out, err := p.try(args...)
	if err != nil {
		p.h.t.Fatal(err)
	}
	return out
}

// testPodman: two containers on two cells, named and by environment.
func testPodman(t *testing.T, w *world, page string, owner int, of func(*host) podman) {
	server, client := of(w.hosts[0]), of(w.hosts[1])
	for _, p := range []podman{server, client} {
		p.h.t = t
		p.h.configure(page, owner)
		p.run("import", w.image+".tar", "box")
	}
	app := strings.TrimSuffix(page, ".md")
	server.run(append([]string{"run", "-d", "--name", app + "-server-0", "box"}, serve...)...)
	started := append(append([]string{"run", "-d", "--name", "any-name-7"}, trustFlags(t, page)...), "box")
	client.with("TULLE_APP="+app+"-client", "TULLE_SPACE=dev").run(append(started, idle...)...)
	to, from := server.h.endpoint(t, ofApp(app+"-server")), client.h.endpoint(t, ofApp(app+"-client"))
	if to.Instance != "0" || to.Space != "default" || from.Space != "dev" || from.Instance != "" {
		t.Errorf("endpoints %+v and %+v", to, from)
	}
	inside := func(args ...string) (string, error) {
		return client.try(append([]string{"exec", "any-name-7"}, args...)...)
	}
	w.meet(t, from, to, inside)
	w.verifies(t, from, to, inside)
	if conf := client.run("exec", "any-name-7", "cat", "/etc/resolv.conf"); !strings.Contains(conf, "nameserver 169.254.0.2") {
		t.Errorf("resolv.conf says %q", conf)
	}
	if shown := server.run("inspect", "-f", `{{range .NetworkSettings.Networks}}{{.IPAddress}}/{{.IPPrefixLen}} {{.MacAddress}}{{end}}`, app+"-server-0"); !strings.HasPrefix(shown, to.Address.String()+"/32 ee:ee:") {
		t.Errorf("podman inspect shows %q, the cell %s", shown, to.Address)
	}

	// A container by its own address, and again after a restart.
	wanted := to.Address.Next().Next().Next()
	server.run(append([]string{"run", "-d", "--name", app + "-fixed-0", "--ip", wanted.String(), "box"}, idle...)...)
	if got := server.h.endpoint(t, ofApp(app+"-fixed")); got.Address != wanted || got.Lifeline != control.LifelineNone {
		t.Errorf("with --ip %s the endpoint is %+v", wanted, got)
	}
	if out, err := server.try(append([]string{"run", "-d", "--name", app + "-second-0", "--ip", to.Address.String(), "box"}, idle...)...); err == nil || !strings.Contains(err.Error(), "is in use") {
		t.Errorf("an address that is in use: %q, %v", out, err)
	}
	for _, p := range []podman{server, client} {
		p.run("rm", "-f", "-a", "-t", "0")
		p.h.gone(t)
	}
}

func testRootPodman(t *testing.T, w *world) {
	testPodman(t, w, "podman.md", 0, rootPodman)
	p := rootPodman(w.hosts[0])
	t.Run("published port", func(t *testing.T) {
		at := freePort(t)
		p.run(append([]string{"run", "-d", "--name", "port-0", "-p", at + ":8080", "box"}, serve...)...)
		if got := fetch(t, at); got != "hello" {
			t.Errorf("http://%s/ answers %q", at, got)
		}
		if out, err := p.try(append([]string{"run", "-d", "--name", "port-1", "-p", at + ":8080", "box"}, serve...)...); err == nil || !strings.Contains(err.Error(), "port-0") && !strings.Contains(err.Error(), "container ") {
			t.Errorf("the same port again: %q, %v", out, err)
		}
		p.run("rm", "-f", "-a", "-t", "0")
		p.h.gone(t)
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatalf("the port of a container that is gone: %v", err)
		}
		must(t, l.Close())
	})
	t.Run("the plugin behind ours found the device", func(t *testing.T) {
		p.run("run", "--rm", "--name", "chain-0", "box", "sh", "-c", "test $(cat /proc/sys/net/ipv4/tcp_keepalive_time) = 600")
	})
}

func testUserPodman(t *testing.T, w *world) {
	testPodman(t, w, "podman-rootless.md", userID, userPodman)
	// podman's own -p is not ours there; the network's is.
	t.Run("port of the network", func(t *testing.T) {
		p := userPodman(w.hosts[0])
		at := freePort(t)
		host, port, _ := strings.Cut(at, ":")
		const conflist, key = "/.config/cni/net.d/10-tulle.conflist", `"capabilities"`
		text := strings.NewReplacer(`"name": "tulle"`, `"name": "published"`, key, fmt.Sprintf(`"ports": [{"hostPort": %s, "hostIP": %q, "containerPort": 8080}], %s`, port, host, key)).
			Replace(files(t, "podman-rootless.md")["~"+conflist])
		p.h.write(home+strings.Replace(conflist, "10-tulle", "20-published", 1), text, userID)
		p.run(append([]string{"run", "-d", "--name", "port-0", "--network", "published", "box"}, serve...)...)
		if got := fetch(t, at); got != "hello" {
			t.Errorf("http://%s/ answers %q", at, got)
		}
		p.run("rm", "-f", "-a", "-t", "0")
		p.h.gone(t)
	})
	for _, h := range w.hosts {
		userPodman(h).run("system", "migrate") // ends its helpers
	}
}

// freePort is an address of this host that nobody listens on now.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().String()
}

// fetch is what a container's server says. A runtime is done when its command was
// started, which may not listen yet: then the forward resets the connection.
func fetch(t *testing.T, at string) string {
	t.Helper()
	client := http.Client{Timeout: patience}
	answer, err := client.Get("http://" + at + "/")
	for begun := time.Now(); errors.Is(err, syscall.ECONNRESET) && time.Since(begun) < patience; {
		answer, err = client.Get("http://" + at + "/")
	}
	must(t, err)
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	must(t, err)
	return string(b)
}
