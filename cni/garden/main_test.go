package garden_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tulle/cni"
	"tulle/cni/garden"
	"tulle/overlay/netcfg/nstest"
)

// The test binary, linked under other names, is the programs that are executed.
const (
	networker = "tulle-garden"
	plugin    = "tulle-cni"
	foreign   = "foreign" // somebody's plugin: it writes down what it is asked
)

func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case networker:
		os.Exit(garden.Run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	case plugin:
		os.Exit(cni.Run(os.Getenv, os.Stdin, os.Stdout, os.Stderr))
	case foreign:
		os.Exit(beForeign(os.Stdin, os.Stdout))
	}
	nstest.Main(m)
}

// beForeign answers ADD with the key "answer" of its configuration, or fails as
// the key "fail" says, and appends each call to the file "record".
func beForeign(in io.Reader, out io.Writer) int {
	var c struct {
		Record string
		Answer json.RawMessage
		Fail   string
	}
	b, err := io.ReadAll(in)
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	f, err := os.OpenFile(c.Record, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	defer f.Close()
	command := os.Getenv("CNI_COMMAND")
	fmt.Fprintf(f, "%s %s %s %s %q %s\n", command, os.Getenv("CNI_CONTAINERID"), os.Getenv("CNI_NETNS"), os.Getenv("CNI_IFNAME"), os.Getenv("CNI_ARGS"), b)
	if c.Fail == command {
		fmt.Fprint(out, `{"cniVersion": "1.0.0", "code": 999, "msg": "no luck"}`)
		return 1
	}
	if command == "ADD" {
		fmt.Fprintf(out, "%s", c.Answer)
	}
	return 0
}

// cell is a host of Garden's: configuration, plugins, state.
type cell struct {
	t                    *testing.T
	dir, bin             string
	config, state, mount string
}

func newCell(t *testing.T, networks string) *cell {
	t.Helper()
	dir := t.TempDir()
	c := &cell{t, dir, filepath.Join(dir, "bin"), filepath.Join(dir, "adapter.json"), filepath.Join(dir, "state", "ports.json"), filepath.Join(dir, "netns")}
	must(t, os.MkdirAll(filepath.Join(dir, "cni"), 0o755))
	must(t, os.MkdirAll(c.bin, 0o755))
	self, err := os.Executable()
	must(t, err)
	for _, name := range []string{networker, plugin, foreign} {
		must(t, os.Symlink(self, filepath.Join(c.bin, name)))
	}
	if networks != "" {
		c.network("10.conflist", networks)
	}
	c.configure(nil)
	return c
}

func (c *cell) network(name, text string) {
	must(c.t, os.WriteFile(filepath.Join(c.dir, "cni", name), []byte(text), 0o600))
}

// configure writes the adapter's file, with changes; nil takes a key away.
func (c *cell) configure(changes map[string]any) {
	keys := map[string]any{
		"cni_plugin_dir": c.bin, "cni_config_dir": filepath.Join(c.dir, "cni"), "bind_mount_dir": c.mount, "state_file": c.state,
		"start_port": 61000, "total_ports": 5000, "log_prefix": "cfnetworking", "iptables_lock_file": "/nowhere",
		"proxy_port": 15001, "proxy_uid": 0, "search_domains": []string{"apps.internal"},
	}
	for k, v := range changes {
		if keys[k] = v; v == nil {
			delete(keys, k)
		}
	}
	b, err := json.Marshal(keys)
	must(c.t, err)
	must(c.t, os.WriteFile(c.config, b, 0o600))
}

// call is guardian's.
func (c *cell) call(action, handle, stdin string) (stdout, stderr string, code int) {
	return run(stdin, "--configFile", c.config, "--action", action, "--handle", handle)
}

func run(stdin string, args ...string) (string, string, int) {
	var out, errs bytes.Buffer
	code := garden.Run(args, strings.NewReader(stdin), &out, &errs)
	return strings.TrimSpace(out.String()), errs.String(), code
}

// must fails when err is not nil.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
