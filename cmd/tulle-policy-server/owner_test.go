package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// What root's commands make in the directory of the user that the server runs as
// is that user's: the server could not start on root's files.
func TestRootMakesNothingThatTheServerCannotOpen(t *testing.T) {
	dir, want := t.TempDir(), owner{os.Getuid(), os.Getgid()}
	if want.uid == 0 {
		want = owner{65534, 65534}
		if err := os.Chown(dir, want.uid, want.gid); err != nil {
			t.Fatal(err)
		}
	}
	must(t, "init", "--dir", dir)
	must(t, "join-token", "cell-1", "--dir", dir, "--spaces", "*")
	must(t, "issue-legacy", "agent", "--dir", dir, "--out", filepath.Join(t.TempDir(), "agent"))
	made := map[string]bool{}
	if err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		if got, ok := ownerOf(info); !ok || got != want {
			t.Errorf("%s is %+v's, want %+v's", path, got, want)
		}
		made[info.Name()] = true
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{configFile, "policy.db", "policy.db.lock", "legacy", "key.pem"} {
		if !made[name] {
			t.Errorf("there is no %s", name)
		}
	}
}
