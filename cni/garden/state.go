package garden

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// portFile is the state file, in the original's form:
//
//	{"acquired_ports":{"handle":[61000,61001]}}
//
// It is replaced as a whole, so that a crash leaves the old one or the new one;
// the lock is a file beside it, since a lock on what is replaced locks nothing.
type portFile struct{ path string }

type portState struct {
	Acquired acquired `json:"acquired_ports"`
}

// change lets f change the state, alone among all calls, and writes it if f says so.
func (p portFile) change(f func(acquired) (changed bool, err error)) (err error) {
	if err := os.MkdirAll(filepath.Dir(p.path), 0o755); err != nil {
		return fmt.Errorf("open lock: %w", err)
	}
	lock, err := os.OpenFile(p.path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("open lock: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("open lock: %w", err)
	}
	var state portState
	switch b, err := os.ReadFile(p.path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("decoding state file: %w", err)
	case len(bytes.TrimSpace(b)) == 0: // as the original leaves a new one
	default:
		if err := json.Unmarshal(b, &state); err != nil {
			return fmt.Errorf("decoding state file: %w", err)
		}
	}
	if state.Acquired == nil {
		state.Acquired = acquired{}
	}
	changed, err := f(state.Acquired)
	if err != nil || !changed {
		return err
	}
	if err := p.replace(state); err != nil {
		return fmt.Errorf("encode and overwrite: %w", err)
	}
	return nil
}

func (p portFile) replace(state portState) error {
	b, err := json.Marshal(state)
	if err != nil {
		return err
	}
	tmp := p.path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(b); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(tmp, p.path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	dir, err := os.Open(filepath.Dir(p.path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// acquire takes n ports of the pool for the handle, all or none, and none of but.
func (p portFile) acquire(handle string, n int, start, total uint32, but ...uint32) (ports []uint32, err error) {
	if n == 0 {
		return nil, nil
	}
	busy := func(port uint16) bool { return slices.Contains(but, uint32(port)) || bound(port) }
	err = p.change(func(a acquired) (bool, error) {
		for range n {
			port, err := a.take(handle, start, total, busy)
			if err != nil {
				return false, err
			}
			ports = append(ports, port)
		}
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	return ports, nil
}

// release gives ports back; without any, all of the handle's.
func (p portFile) release(handle string, ports ...uint32) error {
	return p.change(func(a acquired) (bool, error) {
		_, had := a[handle]
		a.give(handle, ports...)
		return had, nil
	})
}
