package cmd

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// layers lists the packages from the ground up. A package imports only from
// layers below its own, so a folder further down can be read without one
// further up. A new package takes its place here.
var layers = [][]string{
	{"docs", "policy", "overlay/ring", "overlay/ready", "overlay/packet", "overlay/packet/packettest", "overlay/vxlan", "cmd/internal/conf", "cmd/internal/testrun", "cmd/tulle-bench/internal/bench"},
	{"policy/api", "policy/table", "policy/lease", "policy/auth", "policy/ca",
		"overlay/fib", "overlay/flow", "overlay/pmtu", "overlay/tun", "overlay/udp", "overlay/dns", "overlay/netcfg", "tlsproxy/certs", "tlsproxy/http1", "overlay/whois"},
	{"overlay/mint", "overlay/trafficlog"},
	{"overlay/identity"},
	{"tlsproxy"},
	{"overlay/egress/rules"},
	{"policy/auth/uaa", "policy/cc"},
	{"policy/auth/uaa/uaatest"},
	{"policy/cc/cctest"},
	{"overlay/shape", "overlay/tun/tuntest", "overlay/udp/udptest", "overlay/netcfg/nstest", "overlay/netstack", "policy/store", "policy/store/pgrun", "policy/client", "overlay/control"},
	{"policy/route"},
	{"policy/store/sqlstore", "policy/store/cfdump", "policy/store/pgtest"},
	{"policy/store/sqlite", "policy/store/postgres", "policy/store/storetest", "policy/hub", "policy/asgsync", "overlay/datapath", "overlay/endpoint", "overlay/holder", "overlay/wireguard", "cni/attach", "overlay/contain", "tlsproxy/cell", "cmd/internal/promtest"},
	{"policy/foundation"},
	{"policy/foundation/foundationtest"},
	{"overlay/tap"},
	{"overlay/egress"},
	{"overlay/egress/natlog"},
	{"policy/server", "overlay", "cni/netconf"},
	{"cni"},
	{"cni/internal/cnitest", "cni/netavark"},
	{"policy/server/metrics", "cmd/tulle/internal/cli", "cmd/internal/echo", "cmd/tulle/internal/run"},
	{"cmd/internal/demo"},
	{"cmd/internal/runtimes"},
	{"cmd/tulle/internal/e2e"},
	{"cmd/tulle-bench/internal/netlab", "cmd/tulle-bench/internal/traffic"},
	{"cmd/tulle-bench/internal/controlplane", "cmd/tulle-bench/internal/dataplane", "cmd/tulle-bench/internal/attach", "cmd/tulle-bench/internal/tlsbench"},
	{"cmd", "cmd/tulle", "cmd/tulle-policy-server", "cmd/tulle-celld", "cmd/tulle-tlsproxy", "cmd/tulle-bench"},
	{"cni/garden"},
	{"cmd/tulle-cni", "cmd/tulle-netavark", "cmd/tulle-garden"},
}

// pure packages decide and compute: no sockets, files, clock or logger.
var pure = []string{"policy", "policy/table", "overlay/packet", "overlay/pmtu", "overlay/vxlan", "overlay/fib", "overlay/flow", "overlay/egress/rules", "overlay/ring"}

// apart says what must not be reached, directly or through others.
var apart = []struct {
	from, to []string
	why      string
}{
	{[]string{"policy", "policy/api", "policy/table", "policy/client", "policy/foundation", "policy/store", "policy/server", "policy/hub", "policy/ca", "policy/auth", "policy/lease"},
		[]string{"overlay"}, "the control plane knows no packets"},
	{[]string{"overlay/packet", "overlay/vxlan", "overlay/tun", "overlay/udp", "overlay/wireguard"}, []string{"policy"}, "formats never see policy"},
	{[]string{"cni", "overlay/contain", "tlsproxy", "tlsproxy/cell", "cmd/tulle", "cmd/tulle-cni", "cmd/tulle-netavark", "cmd/tulle-tlsproxy"},
		[]string{"overlay/datapath", "overlay/flow", "overlay/fib"}, "attaching and TLS never see the data path"},
	{[]string{"cni", "overlay/contain", "tlsproxy", "cmd/tulle", "cmd/tulle-cni"}, []string{"overlay/egress"}, "only the daemon dials for containers"},
	{[]string{"policy/client", "policy/foundation", "cmd/tulle", "cmd/tulle-celld", "cmd/tulle-cni", "cmd/tulle-netavark", "overlay"},
		[]string{"policy/server", "policy/store", "policy/hub"}, "clients never pull in servers"},
}

const module = "tulle/"

type listed struct {
	ImportPath string
	Dir        string
	Name       string
	Doc        string
	Imports    []string
	Deps       []string
	GoFiles    []string
}

func list(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Name,Doc,Imports,Deps,GoFiles", "./...")
	cmd.Dir = ".."
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var ps []listed
	dec := json.NewDecoder(bytes.NewReader(out))
	for {
		var p listed
		if err := dec.Decode(&p); err == io.EOF {
			return ps
		} else if err != nil {
			t.Fatal(err)
		}
		ps = append(ps, p)
	}
}

func TestLayers(t *testing.T) {
	rank := make(map[string]int)
	for i, layer := range layers {
		for _, p := range layer {
			rank[module+p] = i
		}
	}
	seen := make(map[string]bool)
	for _, p := range list(t) {
		seen[p.ImportPath] = true
		own, ok := rank[p.ImportPath]
		if !ok {
			t.Errorf("%s has no layer: give it one in layers_test.go", p.ImportPath)
			continue
		}
		for _, imp := range p.Imports {
			if r, ok := rank[imp]; ok && r >= own {
				t.Errorf("%s (layer %d) imports %s (layer %d): arrows go down only", p.ImportPath, own, imp, r)
			}
		}
	}
	for p := range rank {
		if !seen[p] {
			t.Errorf("%s has a layer but does not exist", p)
		}
	}
}

func TestLayersApart(t *testing.T) {
	packages := make(map[string]listed)
	for _, p := range list(t) {
		packages[p.ImportPath] = p
	}
	for _, rule := range apart {
		for _, from := range rule.from {
			for _, dep := range packages[module+from].Deps {
				for _, to := range rule.to {
					if dep == module+to || (to == "overlay" || to == "policy") && strings.HasPrefix(dep, module+to+"/") {
						t.Errorf("%s depends on %s: %s", from, dep, rule.why)
					}
				}
			}
		}
	}
}

var clock = regexp.MustCompile(`\btime\.(Now|Since|Until|After|AfterFunc|NewTimer|NewTicker|Sleep|Tick)\(`)

func TestLayersPure(t *testing.T) {
	impure := []string{"net", "net/http", "os", "io/fs", "log", "log/slog", "syscall", "golang.org/x/sys/unix", "crypto/rand"}
	for _, p := range list(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		if !slices.Contains(pure, name) {
			continue
		}
		for _, imp := range p.Imports {
			if slices.Contains(impure, imp) {
				t.Errorf("%s is pure and imports %s", name, imp)
			}
		}
		for _, f := range p.GoFiles {
			b, err := os.ReadFile(filepath.Join(p.Dir, f))
			if err != nil {
				t.Fatal(err)
			}
			if m := clock.Find(b); m != nil {
				t.Errorf("%s/%s is pure and reads the clock: %s", name, f, m)
			}
		}
	}
}

func TestLayersEveryPackageHasOneComment(t *testing.T) {
	comment := regexp.MustCompile(`(?m)^// (Package|Command) `)
	for _, p := range list(t) {
		if p.Doc == "" {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
		var with []string
		for _, f := range p.GoFiles {
			b, err := os.ReadFile(filepath.Join(p.Dir, f))
			if err != nil {
				t.Fatal(err)
			}
			if head, _, ok := bytes.Cut(b, []byte("\npackage ")); ok && comment.Match(head) {
				with = append(with, f)
			}
		}
		if len(with) > 1 {
			t.Errorf("%s has a package comment in each of %s: one is enough", p.ImportPath, strings.Join(with, ", "))
		}
	}
}
