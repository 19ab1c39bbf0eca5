package runtimes

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"tulle/overlay/control"
)

// userRunc is a host as its ordinary user has it.
type userRunc struct{ *host }

func (u userRunc) try(env []string, args ...string) (string, error) {
	env = append([]string{"HOME=" + home, "XDG_RUNTIME_DIR=" + runtime}, env...)
	return u.host.try(env, append([]string{"setpriv", "--reuid", fmt.Sprint(userID), "--regid", fmt.Sprint(userID), "--clear-groups", "--"}, args...)...)
}

func (u userRunc) run(env []string, args ...string) string {
	u.t.Helper()
	out, err := u.try(env, args...)
	if err != nil {
		u.t.Fatal(err)
	}
	return out
}

// create makes a container's bundle and its namespaces, not its process. It returns
// the process that waits in them.
func (u userRunc) create(image, name string, command []string) (pid string) {
	u.t.Helper()
	bundle := home + "/bundles/" + name
	u.run(nil, "mkdir", "-p", bundle)
	u.run(nil, "cp", "-r", image, bundle+"/rootfs")
	u.run(nil, "runc", "spec", "--rootless", "--bundle", bundle)
	var spec map[string]any
	must(u.t, json.Unmarshal([]byte(u.run(nil, "cat", bundle+"/config.json")), &spec))
	process := spec["process"].(map[string]any)
	process["args"], process["terminal"] = command, false
	delete(process, "rlimits")
	linux := spec["linux"].(map[string]any)
	linux["namespaces"] = append(linux["namespaces"].([]any), map[string]any{"type": "network"})
	var mounts []any
	for _, m := range spec["mounts"].([]any) {
		if to := m.(map[string]any)["destination"].(string); !strings.HasPrefix(to, "/sys") {
			mounts = append(mounts, m)
		}
	}
	spec["mounts"] = mounts
	trusted(u.t, spec)
	b, err := json.Marshal(spec)
	must(u.t, err)
	u.write(bundle+"/config.json", string(b), userID)
	u.run(nil, "sh", "-c", `runc create --bundle "$0" "$1" </dev/null >/dev/null 2>"$0/log" || { cat "$0/log"; exit 1; }`, bundle, name)
	var state struct{ PID int }
	must(u.t, json.Unmarshal([]byte(u.run(nil, "runc", "state", name)), &state))
	return fmt.Sprint(state.PID)
}

func (u userRunc) attach(pid, app string) (string, error) {
	return u.try(append([]string{"CNI_ARGS=IgnoreUnknown=1;TULLE_APP=" + app}, cni...),
		"nsenter", "-t", pid, "-U", "--preserve-credentials", "cnitool", "add", "tulle", "/proc/"+pid+"/ns/net")
}

func testUserRunc(t *testing.T, w *world) {
	server, client := userRunc{w.hosts[0]}, userRunc{w.hosts[1]}
	for _, h := range w.hosts {
		h.configure("runc.md", 0)
		h.run(nil, "sh", "-c", "mkdir -p /var/lib/cni && chown -R "+user+" /var/lib/cni")
	}
	start := func(u userRunc, app string, command []string) control.Endpoint {
		pid := u.create(w.image, app, command)
		if out, err := u.attach(pid, app); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		u.run(nil, "runc", "start", app)
		return u.endpoint(t, ofApp(app))
	}
	to, from := start(server, "user-server", serve), start(client, "user-client", idle)
	if to.UID != userID || to.Lifeline != control.LifelinePidfd {
		t.Errorf("endpoint %+v", to)
	}
	inside := func(args ...string) (string, error) {
		return client.try(nil, append([]string{"runc", "exec", "user-client"}, args...)...)
	}
	w.meet(t, from, to, inside)
	w.verifies(t, from, to, inside)

	pid := server.create(w.image, "outside", idle)
	if out, err := server.try(append([]string{"CNI_ARGS=IgnoreUnknown=1;TULLE_APP=outside"}, cni...), "cnitool", "add", "tulle", "/proc/"+pid+"/ns/net"); err == nil || !strings.Contains(err.Error(), "inside the user namespace that owns it") {
		t.Errorf("from outside the user namespace: %q, %v", out, err)
	}
	for u, names := range map[userRunc][]string{server: {"user-server", "outside"}, client: {"user-client"}} {
		for _, name := range names {
			u.run(nil, "runc", "delete", "-f", name)
		}
		u.goesBy(t)
	}
}

// goesBy waits for the ends of containers that nobody detached.
func (h *host) goesBy(t *testing.T) {
	t.Helper()
	deadline := time.After(patience)
	for {
		s, err := h.cell.Status(t.Context())
		must(t, err)
		if len(s.Endpoints) == 0 {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("%s still has %+v", h.cell.Name, s.Endpoints)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
