package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"tulle/cmd/internal/demo"
	"tulle/cmd/tulle-bench/internal/bench"
	"tulle/overlay/netcfg/nstest"
)

// programs builds this program and those that it measures into a directory.
func programs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	args := []string{"build", "-trimpath", "-o", dir + string(filepath.Separator), "tulle/cmd/tulle-bench", "tulle/cmd/tulle-cni"}
	for _, b := range demo.Binaries {
		args = append(args, "tulle/cmd/"+b)
	}
	cmd := exec.Command("go", args...)
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("build the programs: %v", err)
	}
	return dir
}

// needed says what a scenario needs of the machine; nil: nothing.
var needed = map[string]func(*testing.T){
	"policy-api": postgresql, "replicas": postgresql,
	"cross-cell-vxlan": containers, "cross-cell-plain-nic": containers, "cross-cell-wireguard": containers,
	"same-cell": containers, "rr": containers, "crr": containers, "udp": containers, "crowd": containers, "peers": containers, "memory": containers, "dns": dnsmasq, "unprivileged": containers,
	"attach": containers, "egress": containers, "forward": containers,
	"tls": haproxy,
}

func containers(t *testing.T) {
	nstest.NeedRoot(t)
	nstest.NeedTUN(t)
}

func dnsmasq(t *testing.T) {
	containers(t)
	if _, err := exec.LookPath("dnsmasq"); err != nil {
		nstest.Skip(t, "needs dnsmasq: install Debian's package dnsmasq-base")
	}
}

func haproxy(t *testing.T) {
	containers(t)
	if _, err := exec.LookPath("haproxy"); err != nil {
		nstest.Skip(t, "needs haproxy: install Debian's package of that name")
	}
}

func postgresql(t *testing.T) {
	if found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb"); len(found) == 0 {
		nstest.Skip(t, "needs PostgreSQL: install Debian's package postgresql")
	}
}

// TestScenariosMeasure runs every scenario in a small world: that each starts,
// measures what it says, and leaves nothing behind. The figures are none.
func TestScenariosMeasure(t *testing.T) {
	dir := programs(t)
	for _, s := range scenarios() {
		t.Run(s.Name, func(t *testing.T) {
			t.Parallel() // each has namespaces and a directory of its own, and waits most of its time
			if need := needed[s.Name]; need != nil {
				need(t)
			}
			var stdout, stderr bytes.Buffer
			cmd := exec.CommandContext(t.Context(), filepath.Join(dir, "tulle-bench"), "--scenario", s.Name, "--quick", "--json", "--scale", "0.01")
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			if err := cmd.Run(); err != nil {
				t.Fatalf("%v\n%s", err, stderr.String())
			}
			got := map[string]bench.Figure{}
			for dec := json.NewDecoder(&stdout); ; {
				var f bench.Figure
				if err := dec.Decode(&f); errors.Is(err, io.EOF) {
					break
				} else if err != nil {
					t.Fatal(err)
				}
				got[f.Metric] = f
			}
			if strings.Contains(stderr.String(), "left out") {
				t.Logf("%s", stderr.String())
				return
			}
			for _, m := range s.Metrics {
				f, ok := got[m.Name]
				switch {
				case m.Long:
				case !ok:
					t.Errorf("no figure for %s", m.Name)
				case m.Peer != "" && (f.Peer == nil || *f.Peer <= 0):
					t.Errorf("%s: no figure of the peer's: %+v", m.Name, f)
				}
			}
		})
	}
}

func TestBadCommandLineIsStatusTwo(t *testing.T) {
	var out, errOut bytes.Buffer
	if status := run(t.Context(), []string{"--scenario", "none"}, strings.NewReader(""), &out, &errOut); status != 2 || !strings.Contains(errOut.String(), "policy-api") {
		t.Errorf("status %d, %s", status, errOut.String())
	}
}
