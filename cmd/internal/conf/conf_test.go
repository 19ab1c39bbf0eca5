package conf

import (
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// grant and settings stand for a daemon's configuration.
type grant struct {
	UID  *uint32  `yaml:"uid"`
	Orgs []string `yaml:"orgs"`
}

func (g grant) Validate() error {
	if g.UID == nil {
		return Bad("uid", "must be given")
	}
	return nil
}

type mode string

func (m mode) Validate() error {
	if m != "vxlan" {
		return errors.New(`must be "vxlan"`)
	}
	return nil
}

type keys struct {
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
}

type settings struct {
	Name     string            `yaml:"name"`
	Underlay netip.Addr        `yaml:"underlay"`
	Network  netip.Prefix      `yaml:"network"`
	Listen   netip.AddrPort    `yaml:"listen"`
	Port     uint16            `yaml:"port"`
	MTU      int               `yaml:"mtu"`
	Tiny     int8              `yaml:"tiny"`
	Rate     float64           `yaml:"rate"`
	Lifetime time.Duration     `yaml:"lifetime"`
	Level    slog.Level        `yaml:"log_level"`
	On       bool              `yaml:"on"`
	Mode     mode              `yaml:"mode"`
	Allow    []grant           `yaml:"allow"`
	Labels   map[string]string `yaml:"labels"`
	TLS      keys              `yaml:"tls"`
	Spare    *keys             `yaml:"spare"`
	secret   string
	Internal func() `yaml:"-"`
}

func (s *settings) Validate() error {
	var bad []error
	if s.Name == "" {
		bad = append(bad, Bad("name", "must be given"))
	}
	if s.MTU != 0 && s.MTU < 576 {
		bad = append(bad, Bad("mtu", "must be 0 or at least 576"))
	}
	if (s.TLS.Cert == "") != (s.TLS.Key == "") {
		bad = append(bad, errors.New("tls needs both cert and key"))
	}
	return errors.Join(bad...)
}

func defaults() settings {
	return settings{Name: "cell", Port: 4789, Mode: "vxlan", Lifetime: time.Hour, On: true, Allow: []grant{{Orgs: []string{"default"}}}, secret: "kept"}
}

var comparer = cmp.Options{
	cmp.AllowUnexported(settings{}),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmp.Comparer(func(a, b func()) bool { return (a == nil) == (b == nil) }),
}

func TestWhatIsNotNamedKeepsItsDefault(t *testing.T) {
	for _, text := range []string{"", "# nothing\n", "---\n", "{}"} {
		got := defaults()
		if err := Parse([]byte(text), &got); err != nil {
			t.Errorf("%q: %v", text, err)
		}
		if diff := cmp.Diff(defaults(), got, comparer); diff != "" {
			t.Errorf("%q (-want +got):\n%s", text, diff)
		}
	}
}

func TestEveryKindOfValue(t *testing.T) {
	got := defaults()
	err := Parse([]byte(`
name: 7
underlay: 10.0.0.1
network: 10.255.0.0/16
listen: "[::1]:4003"
port: 0
mtu: 1450
tiny: -128
rate: 1.5
lifetime: 168h
log_level: debug
on: false
mode: vxlan
allow:
  - uid: 0
    orgs: [a, b]
labels: {rack: r1, row: "2"}
tls:
  cert: c.pem
  key: k.pem
spare: {cert: d.pem}
`), &got)
	if err != nil {
		t.Fatal(err)
	}
	root := uint32(0)
	want := settings{
		Name: "7", Underlay: netip.MustParseAddr("10.0.0.1"), Network: netip.MustParsePrefix("10.255.0.0/16"),
		Listen: netip.MustParseAddrPort("[::1]:4003"), MTU: 1450, Tiny: -128, Rate: 1.5, Lifetime: 168 * time.Hour,
		Level: slog.LevelDebug, Mode: "vxlan", Allow: []grant{{UID: &root, Orgs: []string{"a", "b"}}},
		Labels: map[string]string{"rack": "r1", "row": "2"}, TLS: keys{"c.pem", "k.pem"}, Spare: &keys{Cert: "d.pem"}, secret: "kept",
	}
	if diff := cmp.Diff(want, got, comparer); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestWhatIsWrongIsNamed(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"unknown key", "name: a\nnmae: b\n", `line 2: nmae: "b": unknown key; there are`},
		{"a dash for an underscore", "log-level: info", `line 1: log-level: "info": unknown key; "log_level" is meant?`},
		{"unknown key inside", "tls:\n  cert: a\n  kee: b\n  key: c\n", `line 3: tls.kee: "b": unknown key; there are cert, key`},
		{"unknown key in a list", "allow:\n- uid: 1\n- uid: 2\n  user: x\n", `line 4: allow[1].user: "x": unknown key`},
		{"a field that is not for the file", "secret: x", `line 1: secret: "x": unknown key`},
		{"port too high", "port: 70000", "line 1: port: 70000: must be a whole number from 0 to 65535"},
		{"port below zero", "port: -1", "line 1: port: -1: must be a whole number from 0 to 65535"},
		{"port as text", `port: "80"`, `line 1: port: "80": must be a whole number`},
		{"tiny too low", "tiny: -129", "line 1: tiny: -129: must be a whole number from -128 to 127"},
		{"a fraction", "mtu: 1.5", "line 1: mtu: 1.5: must be a whole number"},
		{"no number", "rate: fast", `line 1: rate: "fast": must be a number`},
		{"no address", "name: a\nunderlay: 10.0.0.256\n", `line 2: underlay: "10.0.0.256": ParseAddr`},
		{"no prefix", "network: 10.0.0.0", `line 1: network: "10.0.0.0": netip.ParsePrefix`},
		{"no duration", "lifetime: 30", "line 1: lifetime: 30: must be a duration such as 30s or 168h"},
		{"no level", "log_level: loud", `line 1: log_level: "loud": slog`},
		{"no boolean", "on: yes", `line 1: on: "yes": must be true or false`},
		{"a list for a word", "name: [a]", "line 1: name: must be one value, not a list"},
		{"a word for a list", "allow: all", `line 1: allow: "all": must be a list, not a single value`},
		{"a word for a mapping", "tls: none", `line 1: tls: "none": must be keys and values, not a single value`},
		{"a mapping for an address", "underlay: {a: b}", "line 1: underlay: must be one value, not a mapping"},
		{"a bad value of its type", "mode: geneve", `line 1: mode: "geneve": must be "vxlan"`},
		{"a key that must be there", "name: ''\n", `line 1: name: "": must be given`},
		{"a key that must be there, in a list", "allow:\n- orgs: [a]\n", "allow[0].uid: must be given"},
		{"one key without the other", "tls: {cert: a}", "line 1: tls needs both cert and key"},
		{"no value", "name:\n", "line 1: name: has no value; leave the key out for its default"},
		{"twice", "port: 1\nname: a\nport: 2\n", "line 3: port: "},
		{"an alias", "name: &x a\nmode: *x\n", "line 2: mode: aliases are not supported"},
		{"a merge", "tls: &x {cert: a, key: b}\nspare:\n  <<: *x\n", "line 3: spare: "},
		{"two documents", "name: a\n---\nname: b\n", "line 2: a second document begins here"},
		{"a broken second document", "name: a\n---\n{", "yaml: "},
		{"no mapping", "- a\n", "line 1: must be keys and values"},
		{"no yaml", "name: [", "yaml: "},
		{"a tab", "tls:\n\tcert: a\n", "yaml: line 2"},
	} {
		got := defaults()
		err := Parse([]byte(c.text), &got)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want it to hold %q", c.name, err, c.want)
		}
	}
}

func TestAllProblemsAreTold(t *testing.T) {
	got := defaults()
	err := Parse([]byte("port: x\nnmae: y\nallow:\n- uid: -1\nunderlay: z\n"), &got)
	lines := strings.Split(err.Error(), "\n")
	for i, want := range []string{"line 1: port", "line 2: nmae", "line 4: allow[0].uid", "line 5: underlay"} {
		if i >= len(lines) || !strings.HasPrefix(lines[i], want) {
			t.Errorf("problem %d is not %q:\n%v", i, want, err)
		}
	}
	var p *Problem
	if !errors.As(err, &p) || p.Key != "port" || p.Line != 1 || p.Value != `"x"` {
		t.Errorf("the first problem is %+v", p)
	}
}

func TestLoadNamesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "celld.yaml")
	got := defaults()
	if err := Load(path, &got); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	if err := os.WriteFile(path, []byte("port: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Load(path, &got); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "line 1: port") {
		t.Errorf("got %v", err)
	}
	if err := os.WriteFile(path, []byte("port: 9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got = defaults()
	if err := Load(path, &got); err != nil || got.Port != 9 || got.Name != "cell" {
		t.Errorf("got %+v, %v", got, err)
	}
}

// FuzzParse: an operator's file. Nothing makes the loader panic or hang; what it
// takes is valid by the struct's own rules; a problem has a text.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "name: a\nport: 80\n", "allow:\n- uid: 1\n  orgs: [a]\n", "a: &a [*a]", "x: !!binary aGk=", "? [a]\n: b",
		"name: a\n---\n", "mode: *x", "<<: {}\n", "port: 0x1_0\n", "name: \"\\xff\"", "tls: {cert: a, key: b}\nspare: {}\n", "- - -\n", "!!str a: b", "labels: {1: 2}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		got := defaults()
		err := Parse(text, &got)
		if err == nil {
			if err := got.Validate(); err != nil {
				t.Fatalf("%q is taken, but %v", text, err)
			}
			return
		}
		var p *Problem
		if !errors.As(err, &p) || p.Text == "" {
			t.Fatalf("%q: %v names no problem", text, err)
		}
	})
}
