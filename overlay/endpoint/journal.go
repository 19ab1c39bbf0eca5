package endpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	journalName = "journal"
	lockName    = "lock"
)

// ErrLocked: another daemon uses the state directory.
var ErrLocked = errors.New("another daemon uses this state directory")

// journal is the file. append orders records, sync makes them durable; several
// callers of sync share one fsync.
type journal struct {
	dir  string
	lock *os.File

	mu      sync.Mutex // guards the fields below
	f       *os.File
	size    int64
	records int
	broken  error // of a write or fsync that cannot be taken back: nothing can be promised any more

	syncing sync.Mutex // held around an fsync; taken before mu
	synced  int64      // guarded by syncing: bytes of f on the disk
}

// openJournal locks dir, which it makes if it is not there, and reads what the
// journal has. torn is how many bytes at its end were dropped.
func openJournal(dir string) (j *journal, records []*record, torn int, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, 0, fmt.Errorf("state directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, 0, fmt.Errorf("state directory: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Close())
		}
	}()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return nil, nil, 0, fmt.Errorf("%w: %s", ErrLocked, dir)
	} else if err != nil {
		return nil, nil, 0, fmt.Errorf("lock %s: %w", dir, err)
	}
	path := filepath.Join(dir, journalName)
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, 0, fmt.Errorf("journal: %w", err)
	}
	records, good, err := decodeJournal(b)
	if err != nil {
		return nil, nil, 0, fmt.Errorf("journal %s: %w", path, err)
	}
	return &journal{dir: dir, lock: lock}, records, len(b) - good, nil
}

// rewrite begins the journal anew with r alone: written beside, synced, and put
// in place by rename. After an error the old one stands and is still written to.
func (j *journal) rewrite(r *record) error {
	j.syncing.Lock()
	defer j.syncing.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken != nil {
		return j.broken
	}
	line, err := appendRecord(nil, r)
	if err != nil {
		return err
	}
	path := filepath.Join(j.dir, journalName)
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if _, err = f.Write(line); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("journal: %w", err), f.Close(), os.Remove(tmp))
	}
	if j.f != nil {
		_ = j.f.Close() // replaced: nothing in it is needed
	}
	j.f, j.size, j.records, j.synced = f, int64(len(line)), 1, int64(len(line))
	if err := syncDir(j.dir); err != nil {
		j.broken = fmt.Errorf("journal: %w", err)
	}
	return j.broken
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// append writes r behind what is there. After an error the file is as before.
// at is the position to give to sync.
func (j *journal) append(r *record) (at int64, err error) {
	line, err := appendRecord(nil, r)
	if err != nil {
		return 0, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken != nil {
		return 0, j.broken
	}
	if _, err := j.f.Write(line); err != nil {
		err = fmt.Errorf("journal: %w", err)
		if terr := j.f.Truncate(j.size); terr != nil {
			j.broken = errors.Join(err, terr)
		}
		return 0, err
	}
	j.size += int64(len(line))
	j.records++
	return j.size, nil
}

// sync returns when everything up to at is on the disk. After a failed fsync
// the kernel may have forgotten the pages, so nothing is promised again.
func (j *journal) sync(at int64) error {
	j.syncing.Lock()
	defer j.syncing.Unlock()
	if j.synced >= at {
		return nil
	}
	j.mu.Lock()
	f, size, broken := j.f, j.size, j.broken
	j.mu.Unlock()
	if broken != nil {
		return broken
	}
	if err := f.Sync(); err != nil {
		j.mu.Lock()
		j.broken = fmt.Errorf("journal: %w", err)
		j.mu.Unlock()
		return fmt.Errorf("journal: %w", err)
	}
	j.synced = size
	return nil
}

func (j *journal) length() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.records
}

// close gives the directory free.
func (j *journal) close() error {
	j.syncing.Lock()
	defer j.syncing.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	var err error
	if j.f != nil {
		err = j.f.Close()
	}
	j.broken = errors.Join(errors.New("the journal is closed"), j.broken)
	return errors.Join(err, j.lock.Close())
}
