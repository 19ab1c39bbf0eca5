package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain plays the programs of a world, which in these tests are links to
// the test binary itself, by their first argument.
func TestMain(m *testing.M) {
	if slices.Contains(Binaries, filepath.Base(os.Args[0])) {
		if err := play(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// seen is what a played daemon tells of itself in its ready line.
type seen struct {
	Ready      bool   `json:"ready"`
	UID        string `json:"uid"`
	CapEff     string `json:"cap_eff"`
	CapBnd     string `json:"cap_bnd"`
	NoNewPrivs string `json:"no_new_privs"`
	Child      int    `json:"child"`
}

func play(args []string) error {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	uid, _, _ := strings.Cut(field(status, "Uid"), "\t")
	s := seen{Ready: true, UID: uid, CapEff: field(status, "CapEff"), CapBnd: field(status, "CapBnd"), NoNewPrivs: field(status, "NoNewPrivs")}
	switch args[0] {
	case "daemon":
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
	case "parent": // leaves a child behind
		child := exec.Command(os.Args[0], "stubborn")
		child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := child.Start(); err != nil {
			return err
		}
		s.Child = child.Process.Pid
	case "fail":
		return fmt.Errorf("no such moon")
	}
	line, err := json.Marshal(s)
	if err != nil {
		return err
	}
	fmt.Printf("something else first\n%s\n", line)
	<-term
	return nil
}

// testWorld is a world whose programs are this test's.
func testWorld(t *testing.T) *World {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	for _, b := range Binaries {
		if err := copyFile(filepath.Join(bin, b), self); err != nil {
			t.Fatal(err)
		}
	}
	w, err := NewWorld(Options{BinDir: bin})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func startPlayed(t *testing.T, w *World, role string) (*process, seen) {
	t.Helper()
	p, err := w.start(program{name: role, path: w.program("tulle-celld"), args: []string{role}, daemon: true})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), startPatience)
	defer cancel()
	var s seen
	if err := p.awaitReady(ctx, &s); err != nil {
		t.Fatal(err)
	}
	return p, s
}

func TestDaemonsHaveNoPrivilege(t *testing.T) {
	w := testWorld(t)
	_, s := startPlayed(t, w, "daemon")
	want := seen{Ready: true, UID: fmt.Sprint(w.uid), CapEff: "0000000000000000", NoNewPrivs: "1", CapBnd: s.CapBnd}
	if w.root {
		want.UID, want.CapBnd = fmt.Sprint(Nobody), want.CapEff
	}
	if s != want {
		t.Errorf("a daemon has %+v, want %+v", s, want)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if err := w.Close(); err != nil {
		t.Error("closed again:", err)
	}
}

// A program that ends before it is ready says why.
func TestFailedStartTellsTheLog(t *testing.T) {
	w := testWorld(t)
	p, err := w.start(program{name: "fail", path: w.program("tulle-celld"), args: []string{"fail"}, daemon: true})
	if err != nil {
		t.Fatal(err)
	}
	var s seen
	if err := p.awaitReady(context.Background(), &s); err == nil || !strings.Contains(err.Error(), "no such moon") {
		t.Errorf("error %v, want what the program logged", err)
	}
}

func TestCloseNamesWhatDoesNotEnd(t *testing.T) {
	w := testWorld(t)
	w.patience = 20 * time.Millisecond
	p, _ := startPlayed(t, w, "stubborn")
	err := w.Close()
	if err == nil || !strings.Contains(err.Error(), "stubborn did not end") {
		t.Errorf("closed with %v, want the stubborn one named", err)
	}
	if p.alive() {
		t.Error("it is still there")
	}
}

// What a daemon leaves behind when it is killed is found, ended and named.
func TestCloseFindsOrphans(t *testing.T) {
	w := testWorld(t)
	w.patience = 20 * time.Millisecond
	p, s := startPlayed(t, w, "parent")
	if err := p.kill(); err != nil {
		t.Fatal(err)
	}
	if _, parent, ok := stat(s.Child); !ok || parent != os.Getpid() {
		t.Fatalf("the orphan's parent is %d (%v), want this process", parent, ok)
	}
	err := w.Close()
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d was left", s.Child)) {
		t.Errorf("closed with %v, want the orphan named", err)
	}
	if state, _, ok := stat(s.Child); ok && state != 'Z' {
		t.Errorf("the orphan is in state %c", state)
	}
}

func TestResidueNamesNamespaceAndDirectory(t *testing.T) {
	w := testWorld(t)
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if w.namespaces[own], err = os.Open("/proc/self/ns/net"); err != nil {
		t.Fatal(err)
	}
	left := w.residue()
	if left == nil {
		t.Fatal("nothing found")
	}
	for _, want := range []string{"network namespace " + own, "directory " + w.Dir} {
		if !strings.Contains(left.Error(), want) {
			t.Errorf("%q is not in what was found:\n%v", want, left)
		}
	}
	delete(w.namespaces, own)
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

func TestMissingProgramIsNamed(t *testing.T) {
	if _, err := NewWorld(Options{BinDir: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "make build") {
		t.Errorf("error %v, want one that says how to build", err)
	}
}
