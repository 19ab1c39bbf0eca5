package garden

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestPool(t *testing.T) {
	for _, c := range []struct {
		name         string
		has          acquired
		start, total uint32
		want         uint32
		err          error
	}{
		{"first", acquired{}, 61000, 5000, 61000, nil},
		{"lowest free", acquired{"a": {61000, 61002}, "b": {61003}}, 61000, 5000, 61001, nil},
		{"exhausted", acquired{"a": {7, 8}}, 7, 2, 0, errExhausted},
		{"a process has one", acquired{"a": {8}}, 8, 3, 10, nil},
		{"a process has the last", acquired{"a": {7, 8}}, 7, 3, 0, errExhausted},
		{"the last there is", acquired{"a": {65534}}, 65534, 5000, 65535, nil},
		{"none above 65535", acquired{"a": {65534, 65535}}, 65534, 5000, 0, errExhausted},
		{"a pool above all ports", acquired{}, 70000, 10, 0, errExhausted},
		{"a pool that wraps", acquired{"a": {65535}}, 65535, 1<<32 - 1, 0, errExhausted},
	} {
		got, err := c.has.take("h", c.start, c.total, func(p uint16) bool { return p == 9 })
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: %d, %v", c.name, got, err)
		}
	}
	a := acquired{"h": {1, 2, 3}, "o": {4}}
	a.give("h", 2)
	if fmt.Sprint(a) != "map[h:[1 3] o:[4]]" {
		t.Errorf("after giving 2: %v", a)
	}
	a.give("h")
	a.give("nobody")
	if fmt.Sprint(a) != "map[o:[4]]" {
		t.Errorf("after giving all: %v", a)
	}
}

// TestPoolPassesOverPortsInUse: one stray process must not keep every container of
// the cell from starting.
func TestPoolPassesOverPortsInUse(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := uint32(l.Addr().(*net.TCPAddr).Port)
	p := portFile{filepath.Join(t.TempDir(), "ports.json")}
	if ports, err := p.acquire("h", 1, taken, 1); !errors.Is(err, errExhausted) {
		t.Errorf("a pool of one that a process has: %v, %v", ports, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if ports, err := p.acquire("h", 1, taken, 1); err != nil || !slices.Equal(ports, []uint32{taken}) {
		t.Errorf("once it has gone: %v, %v", ports, err)
	}
}

// TestPoolPassesOverWhatIsNamed: a port that the same container asks for by its number
// is not given to it a second time.
func TestPoolPassesOverWhatIsNamed(t *testing.T) {
	n := networker{config: config{StartPort: 62000, TotalPorts: 100}, ports: portFile{filepath.Join(t.TempDir(), "ports.json")}}
	in := []netIn{{0, 8080}, {62000, 9090}, {0, 2222}}
	given, err := n.choosePorts("h", in)
	if err != nil || len(given) != 2 || slices.Contains(given, 62000) {
		t.Errorf("given %v, %v", given, err)
	}
	if in[0].HostPort != given[0] || in[1].HostPort != 62000 || in[2].HostPort != given[1] {
		t.Errorf("asks for %v, given %v", in, given)
	}
}

// TestStateFile in every form it may be found in.
func TestStateFile(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       string // of acquire
	}{
		{"not there", "", "[61000] <nil>"},
		{"empty, as the original makes it", " ", "[61000] <nil>"},
		{"the original's", `{"acquired_ports":{"x":[61000,61001]}}`, "[61002] <nil>"},
		{"no ports", `{"acquired_ports":null}`, "[61000] <nil>"},
		{"cut off", `{"acquired_po`, "[] decoding state file: unexpected end of JSON input"},
		{"another thing", `{"acquired_ports":[]}`, "[] decoding state file: json: cannot unmarshal array into Go struct field portState.acquired_ports of type garden.acquired"},
	} {
		p := portFile{filepath.Join(t.TempDir(), "state", "ports.json")}
		if c.text != "" {
			if err := os.MkdirAll(filepath.Dir(p.path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(p.path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		// What a crash in the middle of replacing it leaves.
		_ = os.WriteFile(p.path+".new", []byte(`{"acq`), 0o600)
		ports, err := p.acquire("h", 1, 61000, 5000)
		if got := fmt.Sprint(ports, " ", err); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// TestStateFileThatCannotBe: the original's words for each.
func TestStateFileThatCannotBe(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		name string
		make func(path string) error
		want string
	}{
		{"no directory", func(path string) error { return os.WriteFile(filepath.Dir(path), nil, 0o600) }, "open lock: "},
		{"no file", func(path string) error { return os.MkdirAll(path, 0o755) }, "decoding state file: "},
		{"not to be replaced", func(path string) error { return os.MkdirAll(path+".new", 0o755) }, "encode and overwrite: "},
	} {
		p := portFile{filepath.Join(dir, c.name, "ports.json")}
		if err := c.make(p.path); err != nil {
			t.Fatal(err)
		}
		if ports, err := p.acquire("h", 1, 61000, 10); ports != nil || err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: %v, %v, want %q", c.name, ports, err, c.want)
		}
	}
}

// TestAllOrNone: a container that wants more than there is gets nothing.
func TestAllOrNone(t *testing.T) {
	p := portFile{filepath.Join(t.TempDir(), "ports.json")}
	if _, err := p.acquire("a", 2, 1, 3); err != nil {
		t.Fatal(err)
	}
	if ports, err := p.acquire("b", 2, 1, 3); !errors.Is(err, errExhausted) || ports != nil {
		t.Errorf("got %v, %v", ports, err)
	}
	if ports, err := p.acquire("c", 1, 1, 3); err != nil || !slices.Equal(ports, []uint32{3}) {
		t.Errorf("got %v, %v", ports, err)
	}
}
