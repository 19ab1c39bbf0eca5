package e2e

import (
	"bufio"
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tulle/cmd/internal/demo"
	"tulle/cmd/internal/echo"
	"tulle/overlay/netcfg/nstest"
	"tulle/policy"
)

// rotation is a `tulle-celld rotate-key` that runs.
type rotation struct {
	cmd   *exec.Cmd
	lines *bufio.Scanner
	said  strings.Builder // on stderr
}

func rotateKey(t *testing.T, ctx context.Context, cell *demo.Cell) *rotation {
	t.Helper()
	bin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	r := &rotation{cmd: exec.CommandContext(ctx, filepath.Join(bin, "tulle-celld"), "rotate-key", "--socket", cell.Socket)}
	r.cmd.Stderr = &r.said
	if os.Geteuid() == 0 { // the daemon's user: the command has no capability to open another's socket
		r.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: demo.Nobody, Gid: demo.Nobody}}
	}
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	r.lines = bufio.NewScanner(out)
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return r
}

// until reads on to a line that begins so.
func (r *rotation) until(begins string) (found bool) {
	for r.lines.Scan() {
		if strings.HasPrefix(r.lines.Text(), begins) {
			return true
		}
	}
	return false
}

// end reads to the end, and says how the command ended.
func (r *rotation) end() error {
	for r.lines.Scan() {
	}
	return r.cmd.Wait()
}

// TestRotateKeyOverKill9: a daemon that is killed in any state of a rotation goes on
// with it when it starts again, and its containers talk all along.
func TestRotateKeyOverKill9(t *testing.T) {
	nstest.NeedTUN(t)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	w := newWorld(t)
	if _, err := w.StartServer(ctx); err != nil {
		t.Fatal(err)
	}
	var cells []*demo.Cell
	for i, name := range []string{"cell-1", "cell-2"} {
		c, err := w.StartCell(ctx, name, netip.AddrFrom4([4]byte{127, 0, 0, byte(i + 1)}), modeWireGuard)
		if err != nil {
			t.Fatal(err)
		}
		cells = append(cells, c)
	}
	front, err := w.StartApp(ctx, cells[0], "front", 0)
	if err != nil {
		t.Fatal(err)
	}
	back, err := w.StartApp(ctx, cells[1], "back", 0)
	if err != nil {
		t.Fatal(err)
	}
	a := api(t, w)
	var ids [2]policy.AppID
	for i, name := range []string{"front", "back"} {
		if ids[i], err = a.AppID(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Create(ctx, policy.Policy{Source: ids[0], Destination: ids[1], Protocol: policy.TCP, Ports: policy.PortRange{Start: demo.Port, End: demo.Port}}); err != nil {
		t.Fatal(err)
	}
	reaches := func(when string) {
		t.Helper()
		e, err := front.Do(ctx, echo.Request{Op: echo.OpDial, Address: back.At(demo.Port), Until: echo.OK, Patience: 30 * time.Second})
		if err != nil || e.Outcome != echo.OK {
			t.Errorf("%s: %+v, %v", when, e, err)
		}
	}
	reaches("before")
	key := func() string {
		t.Helper()
		s, err := cells[0].Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return s.Key.String()
	}
	for _, state := range []string{"the key ", "both keys are published", "the new key is in use", "the new key is published alone"} {
		before := key()
		r := rotateKey(t, ctx, cells[0])
		if !r.until(state) {
			t.Fatalf("it never says %q: %v, %s", state, r.end(), r.said.String())
		}
		if err := cells[0].Kill(); err != nil {
			t.Fatal(err)
		}
		if err := r.end(); err == nil {
			t.Logf("%q: it was over before the kill", state)
		} else if !strings.Contains(r.said.String(), "rotate-key again") {
			t.Errorf("%q: the command ends with %v, %s", state, err, r.said.String())
		}
		if err := cells[0].Restart(ctx); err != nil {
			t.Fatal(err)
		}
		reaches("after a kill at " + state)
		again := rotateKey(t, ctx, cells[0])
		if err := again.end(); err != nil {
			t.Errorf("%q: the rotation after the restart: %v, %s", state, err, again.said.String())
		}
		if key() == before {
			t.Errorf("%q: the key is the former one", state)
		}
		text, err := os.ReadFile(filepath.Join(w.Dir, "cell-1", "state", "wireguard.key"))
		if err != nil || strings.Count(string(text), "\n") != 1 {
			t.Errorf("%q: the file has %d lines, %v", state, strings.Count(string(text), "\n"), err)
		}
		reaches("with the new key")
	}

	// An interrupt ends the command, and not the rotation.
	before := key()
	r := rotateKey(t, ctx, cells[0])
	if !r.until("the key ") {
		t.Fatalf("%v, %s", r.end(), r.said.String())
	}
	if err := r.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := r.end(); err == nil || !strings.Contains(r.said.String(), "goes on in the daemon") {
		t.Errorf("interrupted: %v, %s", err, r.said.String())
	}
	again := rotateKey(t, ctx, cells[0])
	joined := again.until("a rotation is under way")
	if err := again.end(); err != nil || !joined && key() == before {
		t.Errorf("it goes on: joined %t, %v, %s", joined, err, again.said.String())
	}
	reaches("at the end")
}
