package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// victim makes this test binary a program that opens a device and waits to be
// killed.
const victim = "TULLE_TESTRUN_VICTIM"

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == guardCommand {
		os.Exit(guard(os.Args[2], os.Stdin, os.Stderr))
	}
	if device := os.Getenv(victim); device != "" {
		os.Unsetenv(victim)
		if _, err := open(device); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println("open")
		io.Copy(io.Discard, os.Stdin)
		return
	}
	os.Exit(m.Run())
}

func device(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tun")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func mode(t *testing.T, path string) fs.FileMode {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Mode().Perm()
}

func TestModeIsPutBack(t *testing.T) {
	path := device(t)
	restore, err := open(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := mode(t, path); got != 0o666 {
		t.Errorf("mode is %o during the run", got)
	}
	restore()
	if got := mode(t, path); got != 0o600 {
		t.Errorf("mode is %o after the run", got)
	}
}

// Even when the runner is killed, something puts the mode back.
func TestModeIsPutBackAfterSIGKILL(t *testing.T) {
	path := device(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), victim+"="+path)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	// The guard has the victim's standard error: its end is the guard's end.
	done, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer done.Close()
	cmd.Stderr = write
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	write.Close()
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "open\n" {
		t.Fatalf("the runner says %q, %v", line, err)
	}
	if got := mode(t, path); got != 0o666 {
		t.Errorf("mode is %o during the run", got)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	done.SetReadDeadline(time.Now().Add(10 * time.Second))
	if said, err := io.ReadAll(done); err != nil || len(said) > 0 {
		t.Fatalf("the guard says %q, %v", said, err)
	}
	if got := mode(t, path); got != 0o600 {
		t.Errorf("mode is %o after the runner was killed", got)
	}
}

func TestReport(t *testing.T) {
	var out bytes.Buffer
	r := newReport(&out)
	for _, e := range []event{
		{Action: "output", Package: "tulle/a", Test: "TestGood", Output: "chatter\n"},
		{Action: "pass", Package: "tulle/a", Test: "TestGood"},
		{Action: "output", Package: "tulle/a", Test: "TestBad", Output: "    a_test.go:7: got 1, want 2\n"},
		{Action: "fail", Package: "tulle/a", Test: "TestBad"},
		{Action: "output", Package: "tulle/a", Test: "TestLacks", Output: "SKIPPED TestLacks: needs root\n"},
		{Action: "output", Package: "tulle/a", Test: "TestLacks", Output: "    a_test.go:9: needs root\n"},
		{Action: "output", Package: "tulle/a", Test: "TestLacks", Output: "--- SKIP: TestLacks (0.00s)\n"},
		{Action: "skip", Package: "tulle/a", Test: "TestLacks"},
		{Action: "output", Package: "tulle/a", Test: "TestHangs", Output: "panic: test timed out after 20m0s\n"},
		{Action: "output", Package: "tulle/b", Test: "TestRuns", Output: "chatter\n"},
		{Action: "fail", Package: "tulle/a"},
		{Action: "pass", Package: "tulle/b", Test: "TestRuns"},
		{Action: "pass", Package: "tulle/b"},
	} {
		r.add(e)
	}
	r.printSkips()
	if r.passed != 2 || r.failed != 1 || r.skipped != 1 {
		t.Errorf("%d passed, %d failed, %d skipped", r.passed, r.failed, r.skipped)
	}
	for _, want := range []string{"--- FAIL: tulle/a TestBad", "got 1, want 2", "FAIL  tulle/a", "ok    tulle/b",
		"--- DID NOT END: tulle/a TestHangs\npanic: test timed out",
		"SKIPPED 1 tests: needs root\n        a TestLacks\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("does not say %q:\n%s", want, &out)
		}
	}
	if strings.Contains(out.String(), "chatter") {
		t.Errorf("shows what a good test printed:\n%s", &out)
	}
}

// TestAgain runs the go tool on modules with a test that fails the first time,
// one that always fails, and one that does not build.
func TestAgain(t *testing.T) {
	const once = `package a
import ("os"; "testing")
func TestGood(t *testing.T) {}
func TestOnce(t *testing.T) {
	if _, err := os.Stat("seen"); err != nil {
		os.WriteFile("seen", nil, 0o600)
		t.Fatal("the first time")
	}
}
`
	for _, row := range []struct {
		name, more string
		good       bool
		want       string
	}{
		{"steady alone", "", true, "UNSTEADY a: failed beside others, passed alone: TestOnce"},
		{"never", "func TestNever(t *testing.T) { t.Fatal(`always`) }\n", false, "--- FAIL: a TestNever"},
		{"raced", "func TestRaced(t *testing.T) { t.Fatal(`WARNING: DATA RACE`) }\n", false, "DATA RACE"},
		{"does not build", "func TestBuild(t *testing.T) { nothing }\n", false, "undefined: nothing"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			for name, text := range map[string]string{"go.mod": "module a\ngo 1.26\n", "a_test.go": once + row.more} {
				if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			var out bytes.Buffer
			if err := goTest(t.Context(), &out, false); (err == nil) != row.good {
				t.Errorf("%v\n%s", err, &out)
			}
			if !strings.Contains(out.String(), row.want) {
				t.Errorf("does not say %q:\n%s", row.want, &out)
			}
		})
	}
}

func TestVerdict(t *testing.T) {
	for _, row := range []struct {
		name            string
		passed, skipped int
		ci              string
		good            bool
	}{
		{"all passed", 3, 0, "true", true},
		{"a skip here", 3, 1, "", true},
		{"a skip in CI", 3, 1, "true", false},
		{"no test at all", 0, 0, "", false},
	} {
		t.Setenv("CI", row.ci)
		r := newReport(io.Discard)
		r.passed, r.skipped = row.passed, row.skipped
		if err := r.verdict(); (err == nil) != row.good {
			t.Errorf("%s: %v", row.name, err)
		}
	}
}

func TestLate(t *testing.T) {
	for text, want := range map[string]bool{
		"--- FAIL: FuzzX (5.07s)\n    context deadline exceeded\n":                                     true,
		"--- FAIL: FuzzX (1.2s)\n    context deadline exceeded\n    Failing input written to testdata": false,
		"--- FAIL: FuzzX (1.2s)\n    panic":                                                            false,
	} {
		if late([]byte(text)) != want {
			t.Errorf("late(%q) is %v", text, !want)
		}
	}
}
